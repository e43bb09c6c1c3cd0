"""A run and, where its system needs a teacher that is not there yet, the teacher's run before it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from vifast.train import teacher
from vifast.train.build import build_system
from vifast.train.config import TrainConfig
from vifast.train.evaluate import Evaluation
from vifast.train.loop import Trainer, claim_folder
from vifast.train.record import finished


def stages(config: TrainConfig, out: Path) -> list[tuple[str, Path, TrainConfig]]:
    """What has to be trained for ``config``, in this order: name, folder and configuration.

    >>> from vifast.train.config import load_config
    >>> config = load_config("dakd-sysu", ["teacher_config.base=agw-sysu"])
    >>> [(name, str(folder), stage.system) for name, folder, stage in stages(config, Path("run"))]
    [('teacher', 'run/teacher', 'agw'), ('student', 'run', 'dakd')]
    """
    if not teacher.needs_teacher(config):
        return [("training", out, config)]
    own = [("student", out, config)]
    if config.teacher is not None:
        return own
    return [("teacher", out / teacher.FOLDER, teacher.teacher_config(config)), *own]


def train(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    opening: Callable[[], AbstractContextManager] = nullcontext,
) -> Evaluation:
    """Trains ``config`` in the folder ``out``, and before it the teacher that it needs, in ``out/teacher``.

    With ``resume`` it goes on where the run in ``out`` was cut short, in either of them or in between. ``opening`` is
    entered while a dataset is opened, to show how far that is.

    Returns:
        The evaluation of the run itself.

    Raises:
        RunError, ConfigError, FileNotFoundError, ValueError, OSError, Stopped: as `vifast.train.loop.Trainer`.
    """
    whole = stages(config, Path(out))
    for _, folder, stage in whole:
        claim_folder(folder, stage, resume)
    if len(whole) > 1:  # what does not go together is not noticed after hours
        build_system(config, 1, trained=True).learn_from(teacher.untrained_teacher(config, 1))
    for name, folder, stage in whole:
        if folder == whole[-1][1] or not finished(folder):
            with opening():
                trainer = Trainer(stage, folder, resume=resume, quiet=quiet, name=name)
            evaluation = trainer.fit()
    return evaluation
