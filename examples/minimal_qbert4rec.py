"""Q-BERT4Rec in one file of plain torch: the method, readable from top to bottom.

Stage 1 fuses an item's text and image vectors into one vector, stage 2 turns that vector into a semantic ID, stage 3
learns to predict the next item from histories of such IDs. Equations are those of the paper (arXiv 2512.02474). Classes,
functions, weights and settings have the names they have in ``recbole_qbert``, which adds what a product needs: caching,
resuming, kernels, several processes, several domains. ``tests/test_golden.py`` holds the two to each other.

    python examples/minimal_qbert4rec.py [folder of a data set]

Shapes: B users or items in a batch, L positions, N items, K code levels, M codes a level, D width, J vectors an item.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Names as in properties/model/QBERT4Rec.yaml; sizes for a data set of some tens of items.
SETTINGS = SimpleNamespace(
    injection_dim=16, injection_layers=3, injection_heads=2, injection_temperature=0.1, injection_contrast_temperature=0.07,
    injection_consistency=0.1, injection_depth_cost=0.002, injection_id_dropout=0.2, injection_learning_rate=0.001,
    injection_weight_decay=0.01, injection_batch_size=16, injection_epochs=12, injection_patience=3, injection_holdout=0.2,
    rq_levels=3, rq_codes=4, rq_dim=8, rq_hidden=(16,), rq_learning_rate=0.003, rq_weight_decay=0.0001, rq_batch_size=16,
    rq_warmup_epochs=10, rq_epochs=20, rq_beta=0.25, rq_kmeans_iterations=20,
    hidden_size=32, n_layers=2, n_heads=2, inner_size=64, hidden_dropout_prob=0.1, attn_dropout_prob=0.1,
    MAX_ITEM_LIST_LENGTH=20, learning_rate=0.003, adam_betas=(0.9, 0.98), train_batch_size=32,
    pretrain_epochs=10, epochs=20,
)  # fmt: skip


# ---------------------------------------------------------------- stage 1: dynamic cross-modal injection (paper 3.3)


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Take the softmax over the true entries of ``mask``; all zero where none is."""
    return logits.masked_fill(~mask, -1e4).softmax(-1) * mask


class CrossBlock(nn.Module):
    """Let the query attend to the modality vectors (Eq. 4), then apply a feed-forward layer; pre-norm residuals."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value, self.mix = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.norm_query, self.norm_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, hidden: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        size, count, dim = source.shape
        query = self.query(self.norm_query(hidden)).view(size, self.heads, 1, -1)
        key, value = self.key_value(source).view(size, count, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        weight = masked_softmax(query @ key.transpose(2, 3) / (dim // self.heads) ** 0.5, mask[:, None, None, :])
        hidden = hidden + self.mix((weight @ value).reshape(size, dim))
        return hidden + self.feed(self.norm_feed(hidden))


def gate_of(dim: int) -> nn.Sequential:
    """Build the small MLP of paper 3.3: one logit, 'go on to the next layer'. It starts open."""
    last = nn.Linear(dim // 4, 1)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 1.0)
    return nn.Sequential(nn.Linear(dim, dim // 4), nn.ReLU(), last)


class DynamicInjection(nn.Module):
    """Fuse each item's modality vectors into its ID vector, through as many layers as the item needs."""

    def __init__(self, items: int, widths: dict[str, int], settings: SimpleNamespace) -> None:
        super().__init__()
        self.settings, dim = settings, settings.injection_dim
        self.query = nn.Embedding(items + 1, dim)  # one ID vector an item; the last is shared by items without one
        nn.init.normal_(self.query.weight, std=dim**-0.5)
        self.project = nn.ModuleDict({name: nn.Linear(width, dim) for name, width in widths.items()})
        self.blocks = nn.ModuleList(CrossBlock(dim, settings.injection_heads) for _ in range(settings.injection_layers))
        self.gates = nn.ModuleList(gate_of(dim) for _ in range(settings.injection_layers - 1))

    def align(self, query: Tensor, name: str, vectors: Tensor, present: Tensor) -> Tensor:
        """Weight a modality's vectors by their similarity with the query (Eq. 3); ``[B, J, D_m]`` to ``[B, D]``."""
        shared = F.normalize(self.project[name](F.normalize(vectors, dim=2)), dim=2)
        match = torch.einsum("bd,bjd->bj", F.normalize(query, dim=1), shared) / self.settings.injection_temperature
        return torch.einsum("bj,bjd->bd", masked_softmax(match, present), shared)

    def forward(self, query_rows: Tensor, vectors: dict[str, Tensor], present: dict[str, Tensor]) -> dict:
        query = self.query(query_rows)
        aligned = {name: self.align(query, name, vectors[name], present[name]) for name in self.project}
        has_modality = {name: present[name].any(1) for name in self.project}
        source, mask = torch.stack(list(aligned.values()), 1), torch.stack(list(has_modality.values()), 1)
        depth, expected_gates, weight = torch.zeros(len(query), dtype=torch.int64), torch.zeros(()), None
        hidden, active = query, torch.arange(len(query))
        for number, block in enumerate(self.blocks):
            before = hidden[active]
            after = block(before, source[active], mask[active])
            if weight is not None:  # 1 in value; its gradient teaches the gate that let this layer happen
                after = after + (weight - 1.0)[:, None] * (after - before)
            hidden = hidden.index_copy(0, active, after)
            depth[active] += 1
            if number == len(self.blocks) - 1:
                break
            probability = torch.sigmoid(self.gates[number](after)[:, 0])
            expected_gates = expected_gates + probability.sum() / len(query)
            # In training the decision is drawn, afterwards the likelier one is taken. Items that stop are not computed on.
            going = torch.rand_like(probability) < probability if self.training else probability > 0.5
            active, probability = active[going], probability[going]
            if not len(active):
                break
            fixed = probability.detach()
            weight = 1.0 + (probability - fixed) / fixed.clamp(min=0.05)  # straight-through, by the inverse probability
        gates = {"depth": depth, "expected_gates": expected_gates}
        return {"query": query, "vector": hidden, "aligned": aligned, "has_modality": has_modality, **gates}

    def infonce(self, left: Tensor, right: Tensor, real: Tensor) -> Tensor:
        """Contrast matching rows with all others, in both directions."""
        left, right = F.normalize(left[real], dim=1), F.normalize(right[real], dim=1)
        if len(left) < 2:
            return left.sum() * 0.0
        logits, target = left @ right.T / self.settings.injection_contrast_temperature, torch.arange(len(left))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def contrast(self, fused: dict) -> Tensor:
        """Sum the InfoNCE terms of Eq. 5: fused-text, fused-image and text-image."""
        aligned, has_modality, total = fused["aligned"], fused["has_modality"], torch.zeros(())
        names = list(aligned)
        for number, name in enumerate(names):
            total = total + self.infonce(fused["vector"], aligned[name], has_modality[name])
            for other in names[number + 1 :]:
                total = total + self.infonce(aligned[name], aligned[other], has_modality[name] & has_modality[other])
        return total

    def loss(self, fused: dict) -> Tensor:
        """Add the consistency term of Eq. 5, and a small cost of depth, of which the paper says nothing."""
        consistency = (fused["vector"] - fused["query"].detach()).square().sum(1).mean()
        cost = self.settings.injection_depth_cost * fused["expected_gates"]
        return self.contrast(fused) + self.settings.injection_consistency * consistency + cost


def fuse(
    vectors: dict[str, Tensor], present: dict[str, Tensor], settings: SimpleNamespace, seed: int
) -> tuple[DynamicInjection, Tensor, Tensor]:
    """Train stage 1 on a catalog: ``(network, fused vectors [N, D], depths [N])``."""
    torch.manual_seed(seed)
    count, widths = len(next(iter(vectors.values()))), {name: matrix.shape[2] for name, matrix in vectors.items()}
    no_id = count

    def run(model: DynamicInjection, query_rows: Tensor, rows: Tensor) -> dict:
        take = ({name: matrix[rows] for name, matrix in group.items()} for group in (vectors, present))
        return model(query_rows, *take)

    def train_epoch(model: DynamicInjection, optimizer: torch.optim.Optimizer, rows: Tensor) -> None:
        model.train()
        for batch in rows[torch.randperm(len(rows))].split(settings.injection_batch_size):
            if len(batch) < 2:
                continue
            nameless = torch.rand(len(batch)) < settings.injection_id_dropout  # so that new items can be fused, too
            loss = model.loss(run(model, torch.where(nameless, no_id, batch), batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def begin() -> tuple[DynamicInjection, torch.optim.Optimizer]:
        model = DynamicInjection(count, widths, settings)
        rate, decay = settings.injection_learning_rate, settings.injection_weight_decay
        return model, torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)

    # How many epochs? Until the contrastive loss of held-out items stops falling. The paper is silent; trained to the end,
    # the network memorises which text belongs to which image.
    order = torch.randperm(count)
    described = order[torch.stack([some.any(1) for some in present.values()]).any(0)[order]]
    held_out = described[: int(len(described) * settings.injection_holdout)]
    best, epochs = float("inf"), settings.injection_epochs
    model, optimizer = begin()
    if len(held_out) >= 2:
        for epoch in range(settings.injection_epochs):
            train_epoch(model, optimizer, order[~torch.isin(order, held_out)])
            with torch.no_grad():
                loss = float(model.contrast(run(model.eval(), torch.full_like(held_out, no_id), held_out)))
            if loss < best:
                best, epochs = loss, epoch + 1
                kept = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
            elif epoch + 1 - epochs >= settings.injection_patience:
                break
        # Training goes on from the best weights with all items, for the held-out share of the epochs so far.
        model.load_state_dict(kept[0])
        optimizer.load_state_dict(kept[1])
        epochs = max(1, round(epochs * settings.injection_holdout))
    for _ in range(epochs):
        train_epoch(model, optimizer, torch.arange(count))
    with torch.no_grad():
        fused = run(model.eval(), torch.arange(count), torch.arange(count))
    return model, fused["vector"], fused["depth"]


# ------------------------------------------------------------------ stage 2: residual quantization (paper 3.4)


def mlp(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class RQVAE(nn.Module):
    """Encode a vector, replace it by the sum of one code a level, decode it."""

    def __init__(self, inputs: int, settings: SimpleNamespace) -> None:
        super().__init__()
        sizes = [inputs, *settings.rq_hidden, settings.rq_dim]
        self.encoder, self.decoder, self.beta = mlp(sizes), mlp(sizes[::-1]), settings.rq_beta
        self.codebooks = nn.Parameter(torch.zeros(settings.rq_levels, settings.rq_codes, settings.rq_dim))

    def quantize(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Choose the nearest code of what the levels before left over (Eq. 6): codes, chosen vectors, residuals."""
        codes, chosen, residuals, residual = [], [], [], latent
        for book in self.codebooks:
            residuals.append(residual)
            codes.append(torch.cdist(residual.detach(), book.detach()).argmin(1))
            chosen.append(book[codes[-1]])
            residual = residual - chosen[-1].detach()
        return torch.stack(codes, 1), torch.stack(chosen, 1), torch.stack(residuals, 1)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct vectors through their codes: ``(reconstruction, loss of Eq. 8, codes [B, K])``."""
        latent = self.encoder(vectors)
        codes, chosen, residuals = self.quantize(latent)
        pull, commit = (residuals.detach() - chosen).square(), (residuals - chosen.detach()).square()
        loss = (pull + self.beta * commit).sum((1, 2)).mean()
        return self.decoder(latent + (chosen.sum(1) - latent).detach()), loss, codes


@torch.no_grad()
def kmeans(points: Tensor, clusters: int, iterations: int) -> Tensor:
    """Run Lloyd's algorithm from a k-means++ start; an empty cluster takes the point farthest from its center."""
    centers = points[torch.randint(len(points), (1,))]
    distance = (points - centers).square().sum(1)
    for _ in range(clusters - 1):
        centers = torch.cat([centers, points[torch.multinomial(distance, 1)]])
        distance = torch.minimum(distance, (points - centers[-1]).square().sum(1))
    for _ in range(iterations):
        owner = torch.cdist(points, centers).argmin(1)
        count = torch.bincount(owner, minlength=clusters)
        moved = torch.zeros_like(centers).index_add_(0, owner, points) / count.clamp(min=1)[:, None]
        empty = (count == 0).nonzero()[:, 0]
        moved[empty] = points[(points - centers[owner]).square().sum(1).topk(len(empty)).indices]
        if torch.allclose(moved, centers, rtol=0, atol=1e-6):
            break
        centers = moved
    return centers


@torch.no_grad()
def init_codebooks(model: RQVAE, vectors: Tensor, iterations: int) -> None:
    """Start every level by k-means on the residuals of the whole catalog."""
    residual = model.encoder(vectors)
    for book in model.codebooks:
        book.copy_(kmeans(residual, len(book), iterations))
        residual = residual - book[torch.cdist(residual, book).argmin(1)]


@torch.no_grad()
def reset_dead_codes(model: RQVAE, vectors: Tensor, dead: Tensor) -> None:
    """Move codes that no item chose, ``dead [K, M]``, onto residuals of random items."""
    moved = {}
    for level in dead.any(1).nonzero()[:, 0].tolist():
        rows = torch.randint(len(vectors), (int(dead[level].sum()),))
        moved[level] = model.quantize(model.encoder(vectors[rows]))[2][:, level]
    for level, residuals in moved.items():  # after all were computed: a moved code changes the residuals below it
        model.codebooks[level, dead[level]] = residuals


def train_rqvae(vectors: Tensor, settings: SimpleNamespace, seed: int) -> RQVAE:
    """Train stage 2 by Eq. 9: first as a plain autoencoder, then with codes started by k-means."""
    torch.manual_seed(seed)
    model = RQVAE(vectors.shape[1], settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rq_learning_rate, weight_decay=settings.rq_weight_decay)
    total = settings.rq_warmup_epochs + settings.rq_epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total, settings.rq_learning_rate * 0.01)
    for epoch in range(total):
        if epoch == settings.rq_warmup_epochs:
            init_codebooks(model, vectors, settings.rq_kmeans_iterations)
        used = torch.zeros(settings.rq_levels, settings.rq_codes)
        for rows in torch.randperm(len(vectors)).split(settings.rq_batch_size):
            batch = vectors[rows]
            if epoch < settings.rq_warmup_epochs:
                reconstruction, loss = model.decoder(model.encoder(batch)), torch.zeros(())
            else:
                reconstruction, loss, codes = model(batch)
                used += F.one_hot(codes, settings.rq_codes).sum(0)
            optimizer.zero_grad()
            ((reconstruction - batch).square().sum(1).mean() + loss).backward()  # Eq. 7 + Eq. 8
            optimizer.step()
        schedule.step()
        if settings.rq_warmup_epochs <= epoch < total * 0.9:
            reset_dead_codes(model, vectors, used == 0)
    return model.eval()


def reallocate(codes: np.ndarray, latents: np.ndarray, codebooks: np.ndarray, items: list[str]) -> np.ndarray:
    """Make IDs unique (Eq. 10). Of items that share one, the closest keeps it; each other takes the nearest free one."""
    levels, size = len(codebooks), codebooks.shape[1]
    latents, codebooks = latents.astype(np.float64), codebooks.astype(np.float64)

    def distances(row: int, path: tuple[int, ...]) -> np.ndarray:
        residual = latents[row] - codebooks[np.arange(len(path)), list(path)].sum(0)
        return ((residual - codebooks[len(path)]) ** 2).sum(1)

    owners: dict[tuple[int, ...], list[tuple]] = {}
    for row, code in enumerate(map(tuple, codes.tolist())):
        last = distances(row, code[:-1])
        owners.setdefault(code, []).append((last[code[-1]], items[row], row, last.min()))
    waiting = sorted((least, item, row) for group in owners.values() for _, item, row, least in sorted(group)[1:])
    taken, result = set(owners), codes.copy()

    def has_room(prefix: tuple[int, ...]) -> bool:
        return sum(path[: len(prefix)] == prefix for path in taken) < size ** (levels - len(prefix))

    for _, _, row in waiting:
        code = tuple(codes[row].tolist())
        path = next(code[:keep] for keep in range(levels - 1, -1, -1) if has_room(code[:keep]))
        while len(path) < levels:
            nearest = np.argsort(distances(row, path), kind="stable").tolist()
            path = next((*path, code) for code in nearest if has_room((*path, code)))
        taken.add(path)
        result[row] = path
    return result


def quantize(vectors: Tensor, items: list[str], settings: SimpleNamespace, seed: int) -> np.ndarray:
    """Give every item of a catalog a semantic ID of its own; ``[N, K]``."""
    vectors = vectors - vectors.mean(0)
    vectors = vectors / vectors.square().sum(1).mean().sqrt()  # mean 0, mean squared length 1
    model = train_rqvae(vectors, settings, seed)
    with torch.no_grad():
        latents = model.encoder(vectors)
        codes = model.quantize(latents)[0]
    return reallocate(codes.numpy(), latents.numpy(), model.codebooks.detach().numpy(), items)


# ------------------------------------------------- stage 3: masked and causal sequence model (paper 3.5 and 3.6)

PENALTY_SCALE, BIAS_SCALE = 25.0, 5.0  # the repeat penalty and the distance bias live on the scale of logits
PENALTY_START = 5.0


class Block(nn.Module):
    """Post-norm transformer block."""

    def __init__(self, settings: SimpleNamespace) -> None:
        super().__init__()
        width, inner, self.heads = settings.hidden_size, settings.inner_size, settings.n_heads
        self.drop, self.drop_weight = nn.Dropout(settings.hidden_dropout_prob), nn.Dropout(settings.attn_dropout_prob)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.grow, self.shrink = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        size, length, width = hidden.shape
        query, key, value = self.qkv(hidden).view(size, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weight = (query @ key.transpose(2, 3) / (width // self.heads) ** 0.5 + bias).softmax(3)
        seen = (self.drop_weight(weight) @ value).transpose(1, 2).reshape(size, length, width)
        hidden = self.norm_attention(hidden + self.drop(self.mix(seen)))
        return self.norm_feed(hidden + self.drop(self.shrink(self.drop(F.gelu(self.grow(hidden))))))


class SequenceEncoder(nn.Module):
    """Layers of attention with a learned bias a distance; ``causal`` says whether a position sees those behind it."""

    def __init__(self, settings: SimpleNamespace) -> None:
        super().__init__()
        width, self.positions = settings.hidden_size, settings.MAX_ITEM_LIST_LENGTH + 1
        self.distance = nn.Parameter(torch.empty(settings.n_heads, 2 * self.positions - 1))
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(settings.hidden_dropout_prob)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.n_layers))

    def forward(self, vectors: Tensor, lengths: Tensor, causal: bool) -> Tensor:
        position = torch.arange(vectors.shape[1])
        offset = position[None, :] - position[:, None]
        blocked = offset > 0 if causal else (position >= lengths[:, None])[:, None, None, :]
        bias = (BIAS_SCALE * self.distance[:, offset + self.positions - 1])[None].masked_fill(blocked, -torch.inf)
        hidden = self.drop(self.norm(vectors))
        for block in self.blocks:
            hidden = block(hidden, bias)
        return hidden


class SemanticSequenceModel(nn.Module):
    """Score every item for a history. Row 0 of ``codes [N + 1, K]`` is padding and never an answer."""

    def __init__(self, settings: SimpleNamespace, codes: Tensor) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("codes", codes.to(torch.int16))
        self.codebook = nn.Parameter(torch.empty(codes.shape[1], settings.rq_codes, settings.hidden_size))
        self.item_embedding = nn.Parameter(torch.empty(len(codes), settings.hidden_size))
        self.mask_vector = nn.Parameter(torch.empty(settings.hidden_size))
        self.repeat_penalty = nn.Parameter(torch.tensor(PENALTY_START / PENALTY_SCALE))
        self.encoder = SequenceEncoder(settings)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 or name == "mask_vector":
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def item_table(self) -> Tensor:
        """Add up an item's code embeddings and its own; ``[N + 1, D]``, both input and output (tied)."""
        codes = self.codes.long()
        vectors = self.codebook[torch.arange(codes.shape[1]), codes.clamp(min=0)] * (codes >= 0)[:, :, None]
        return vectors.sum(1) + self.item_embedding

    def logits(self, state: Tensor, history: Tensor) -> Tensor:
        """Match a state with every item, less a learned penalty for items of the history."""
        logits = state @ self.item_table().T - self.repeat_penalty * PENALTY_SCALE * history
        return logits.index_fill(-1, torch.tensor([0]), -torch.inf)

    def loss(self, sequences: Tensor, lengths: Tensor, hidden: Tensor) -> Tensor:
        """Predict the next item at every position, and the ``hidden [B, L]`` items from the others (Eq. 11).

        Eq. 11 is over codes. The softmax over items used here learns faster and ranks better (docs/results.md); an item's
        logit is the sum of those of its codes and of its own embedding.
        """
        position = torch.arange(sequences.shape[1])
        real, vectors = position < lengths[:, None], self.item_table()[sequences]
        holds = F.one_hot(sequences, len(self.codes)) * real[:, :, None]  # [B, L, N + 1]
        where = position < (lengths - 1)[:, None]
        state, history = self.encoder(vectors, lengths, causal=True), holds.cumsum(1).clamp(max=1)
        causal = F.cross_entropy(self.logits(state, history)[where], sequences.roll(-1, 1)[where])
        state = self.encoder(torch.where(hidden[:, :, None], self.mask_vector, vectors), lengths, causal=False)
        history = (holds * ~hidden[:, :, None]).sum(1, keepdim=True).clamp(max=1)
        return causal + F.cross_entropy(self.logits(state, history)[hidden], sequences[hidden])

    def scores(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """Average the log-probability of every item over the two views; ``[B, N + 1]``."""
        rows, vectors = torch.arange(len(sequences)), self.item_table()[sequences]
        real = torch.arange(sequences.shape[1]) < lengths[:, None]
        history = (F.one_hot(sequences, len(self.codes)) * real[:, :, None]).sum(1).clamp(max=1)
        causal = self.encoder(vectors, lengths, causal=True)[rows, lengths - 1]
        vectors = torch.cat([vectors, torch.zeros_like(vectors[:, :1])], 1)
        vectors[rows, lengths] = self.mask_vector  # [MASK] after the history
        masked = self.encoder(vectors, lengths + 1, causal=False)[rows, lengths]
        return torch.stack([self.logits(state, history).log_softmax(1) for state in (causal, masked)]).mean(0)


def draw_masks(lengths: Tensor, width: int, ratios: dict[str, float]) -> Tensor:
    """Hide a share of each row by one strategy drawn for it (paper 3.5 and 4.1); at least one item, never all."""
    masks, names = torch.zeros(len(lengths), width, dtype=torch.bool), list(ratios)
    for row, length in enumerate(lengths.tolist()):
        name = names[int(torch.randint(len(names), ()))]
        count = min(max(round(length * ratios[name]), 1), length - 1)
        if name == "random":
            hidden = torch.randperm(length)[:count]
        elif name == "tail":
            hidden = torch.arange(length - count, length)
        elif name == "span":
            hidden = torch.arange(count) + torch.randint(length - count + 1, ())
        else:  # multi_region: single items that do not touch, where the row has room for them
            gaps = torch.randperm(length - count + 1)[:count].sort().values
            hidden = gaps + torch.arange(len(gaps))
        masks[row, hidden] = True
    return masks


PRETRAIN_MASKS = {"span": 0.3, "multi_region": 0.15, "tail": 0.1}
FINETUNE_MASKS = {"random": 0.3}


def train(model: SemanticSequenceModel, histories: list[list[int]], masks: dict[str, float], epochs: int) -> None:
    """Train stage 3 on whole histories, one row a user; pretraining and fine-tuning differ in their masks."""
    settings = model.settings
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=settings.adam_betas)
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for rows in torch.randperm(len(histories)).split(settings.train_batch_size):
            sequences, lengths = pad([histories[row] for row in rows.tolist()])
            loss = model.loss(sequences, lengths, draw_masks(lengths, sequences.shape[1], masks))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            total += loss.item() * len(rows)
        if (epoch + 1) % 5 == 0:
            print(f"  epoch {epoch + 1:3}  loss {total / len(histories):.4f}")


# ------------------------------------------------------------------------------------------ data and evaluation


@dataclass(frozen=True)
class Data:
    """A data set: item tokens, histories of item numbers from 1 in order of time, modality vectors and which exist."""

    items: list[str]
    histories: list[list[int]]
    vectors: dict[str, Tensor]
    present: dict[str, Tensor]


def read_data(folder: Path) -> Data:
    """Read ``X.inter``, ``X.items.txt`` and ``X.<modality>.npy`` of a folder named ``X``."""
    name = folder.name
    number: dict[str, int] = {}
    events: dict[str, list[tuple[float, int]]] = {}
    for line in (folder / f"{name}.inter").read_text(encoding="utf-8").splitlines()[1:]:
        user, item, time = line.split("\t")
        events.setdefault(user, []).append((float(time), number.setdefault(item, len(number) + 1)))
    histories = [[item for _, item in sorted(event, key=lambda pair: pair[0])] for event in events.values()]
    names = (folder / f"{name}.items.txt").read_text(encoding="utf-8").split()
    rows, vectors, present = [names.index(item) for item in number], {}, {}
    for modality in ("text", "image"):
        matrix = torch.from_numpy(np.load(folder / f"{name}.{modality}.npy")[rows].astype(np.float32))
        matrix = matrix[:, None] if matrix.dim() == 2 else matrix
        present[modality], vectors[modality] = ~matrix.isnan().all(2), matrix.nan_to_num()
    return Data(list(number), histories, vectors, present)


def pad(histories: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Put histories into one left-aligned matrix: ``(sequences [B, L], lengths [B])``."""
    lengths = torch.tensor([len(history) for history in histories])
    return nn.utils.rnn.pad_sequence([torch.tensor(history) for history in histories], batch_first=True), lengths


@torch.no_grad()
def rank_of(scores: Tensor, target: Tensor) -> Tensor:
    """Rank each row's target, from 1; items with the same score count as better."""
    return (scores >= scores.gather(1, target[:, None])).sum(1)


def ndcg_at_10(model: SemanticSequenceModel, histories: list[list[int]]) -> float:
    """Rank the last item of every history among all items, given the items before it."""
    with torch.no_grad():
        scores = model.eval().scores(*pad([history[:-1] for history in histories]))
    rank = rank_of(scores, torch.tensor([history[-1] for history in histories]))
    return float(torch.where(rank <= 10, 1 / torch.log2(rank + 1.0), 0.0).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Q-BERT4Rec in one file.")
    tiny = Path(__file__).resolve().parents[1] / "tests" / "golden" / "Tiny"
    parser.add_argument("folder", nargs="?", type=Path, default=tiny, help="data set with text and image vectors")
    parser.add_argument("--seed", type=int, default=2028)
    options = parser.parse_args()
    settings, data = SETTINGS, read_data(options.folder)

    _, fused, depth = fuse(data.vectors, data.present, settings, options.seed)
    print(f"stage 1: {len(data.items)} items fused; mean depth {depth.float().mean():.2f} of {settings.injection_layers}")
    codes = quantize(fused, data.items, settings, options.seed)
    print("stage 2: semantic IDs")
    for item, code in list(zip(data.items, codes.tolist(), strict=True))[:5]:
        print(f"  {item:4}", "".join(f"<{letter}_{number}>" for letter, number in zip("abcdefgh", code, strict=False)))

    torch.manual_seed(options.seed)
    model = SemanticSequenceModel(settings, F.pad(torch.from_numpy(codes), (0, 0, 1, 0), value=-1))
    train_histories = [history[:-2] for history in data.histories]  # leave-one-out: the last is test, before it validation
    print(f"stage 3: test NDCG@10 untrained {ndcg_at_10(model, data.histories):.4f}")
    print(" pretraining with span, multi-region and tail masks")
    train(model, train_histories, PRETRAIN_MASKS, settings.pretrain_epochs)
    print(" fine-tuning with random masks")
    train(model, train_histories, FINETUNE_MASKS, settings.epochs)
    print(f"test NDCG@10 {ndcg_at_10(model, data.histories):.4f}")


if __name__ == "__main__":
    main()
