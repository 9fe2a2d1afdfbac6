"""The name of every file and folder of a run directory; without imports, so that every layer can use it."""

from typing import Final

# The run directory.
CONFIG_FILE: Final = "config.yaml"
SPACE_FILE: Final = "space.yaml"
JOURNAL_FILE: Final = "study.journal"
IMPORTANCE_FILE: Final = "importance.safetensors"
CURVES_FILE: Final = "curves.json"
LATENCY_MODEL_FILE: Final = "latency_model.json"
PROXY_CHECK_FILE: Final = "proxies.json"
LOCK_FILE: Final = ".lock"
POLICIES_FOLDER: Final = "policies"
RECOVERED_FOLDER: Final = "recovered"
TENSORBOARD_FOLDER: Final = "tensorboard"
TRIAL_NAME: Final = "trial-{:04d}"  # of a policy in `policies/`, or of a folder in `recovered/`

# What readers of a run add to it.
FRONT_FILE: Final = "front.csv"
FRONT_PICTURE: Final = "front.png"
REPORT_FILE: Final = "report.html"
TRIALS_FILE: Final = "trials.csv"

# The folder of one detector: a recovered trial, a baseline, or an export.
POLICY_FILE: Final = "policy.yaml"
WEIGHTS_FILE: Final = "model.safetensors"
METRICS_FILE: Final = "metrics.json"
LOSSES_FILE: Final = "losses.csv"
LATENCY_FILE: Final = "latency.json"
SAMPLES_FILE: Final = "samples.json"
CARD_FILE: Final = "MODEL_CARD.md"
RECOVERY_CHECKPOINT_FILE: Final = ".checkpoint.safetensors"
BASELINE_CHECKPOINT_FILE: Final = "checkpoint.safetensors"
