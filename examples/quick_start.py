"""Train QBERT4Rec on ml-100k, which ships with RecBole, and print its metrics on test.

    python examples/quick_start.py

ml-100k brings no text and no pictures, so semantic IDs are made of what is watched together.
"""

from __future__ import annotations

from recbole.quick_start import run_recbole

import recbole_qbert  # noqa: F401  first: it registers QBERT4Rec; without it RecBole says: No module named 'lightgbm'

if __name__ == "__main__":
    settings = {"epochs": 10, "train_batch_size": 32, "learning_rate": 0.003, "show_progress": False}
    result = run_recbole(model="QBERT4Rec", dataset="ml-100k", config_dict=settings)
    print(dict(result["test_result"]))
