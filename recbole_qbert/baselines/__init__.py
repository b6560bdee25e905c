"""Networks of baselines that read item vectors: VQ-Rec and MISSRec. Tensors only, without RecBole."""
