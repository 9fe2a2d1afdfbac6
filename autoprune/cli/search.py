"""`autoprune search`: the study that finds the best policies within a budget."""

from autoprune.cli.front import show_result
from autoprune.cli.settings import PANELS, with_config
from autoprune.cli.terminal import working
from autoprune.config import Config


@with_config(*PANELS)
def search(config: Config) -> None:
    """Search for the policies that keep the most mAP within a budget; the same command resumes a run."""
    from autoprune.pipeline import search as run

    with working() as console:
        result = run(config)
        show_result(console, result)
