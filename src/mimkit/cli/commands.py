"""What the command line can do, one function each: flags come from the signatures, help from the docstrings.

Nothing here imports torch before a command that needs it runs.
"""

from collections.abc import Callable

from mimkit.cli.bench import bench
from mimkit.cli.convert import export, import_
from mimkit.cli.data import pack
from mimkit.cli.evaluation import embed, probe, reconstruct, report
from mimkit.cli.training import demo, pretrain, recipes, resume

COMMANDS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "recipes": recipes,
    "pretrain": pretrain,
    "resume": resume,
    "probe": probe,
    "embed": embed,
    "reconstruct": reconstruct,
    "report": report,
    "import": import_,
    "export": export,
    "pack": pack,
    "bench": bench,
}
