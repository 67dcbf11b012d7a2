"""The evaluation of a training run: scores of student and EMA, labels of the method, figures, run log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from semivl_jax import utils
from semivl_jax.data.examples import EvalExample, EvalExamples
from semivl_jax.evaluation import samples as samples_lib
from semivl_jax.evaluation.confusion import format_table
from semivl_jax.evaluation.evaluator import Evaluation, Evaluator
from semivl_jax.experiment import pseudo_label_quality, run_log
from semivl_jax.experiment.data import Data
from semivl_jax.experiment.experiment import Experiment
from semivl_jax.experiment.figures import Figures
from semivl_jax.experiment.pseudo_label_quality import ImageLabeller, PseudoLabelQuality
from semivl_jax.train import distributed, sharding
from semivl_jax.train.state import TrainState
from semivl_jax.types import PyTree


class RunEvaluation:
    """Scores student and EMA on the validation part, prints and draws; the loop's evaluate hook."""

    def __init__(
        self,
        experiment: Experiment,
        evaluator: Evaluator,
        data: Data,
        workdir: Path,
        *,
        picture: Callable[[int, str, np.ndarray], None] | None = None,
        between: Callable[[], None] | None = None,
        draws: bool = True,
    ) -> None:
        """`draws`: pictures and samples are written into the working directory.

        `picture(step, name, image)` gets every picture; `between()` is called between images. All processes
        call it equally often, so not while only the first one makes pictures.
        """
        self._experiment, self._data = experiment, data
        self._picture, self._between, self._draws = picture, between, draws
        self._evaluator = evaluator
        self._figures = Figures(experiment, workdir / "pictures")
        self._samples, self._log = workdir / "samples", run_log.RunLog(workdir)
        count = experiment.config.evaluation.pseudo_label_eval_images
        self._quality = PseudoLabelQuality(experiment, data, images=count)
        pixels, _ = data.train.count_classes(data.split.labelled)
        self._labelled_pixels = pixels[: data.info.num_classes]
        self._has_ema = experiment.modules.method.decay is not None
        self.score = "eval/miou_ema" if self._has_ema else "eval/miou"
        self.newest: Mapping[str, float] = {}

    def __call__(self, state: TrainState, step: int) -> Mapping[str, float]:
        """Scalars by name; the per-class IoU is that of the weights that `score` evaluates.

        `newest` gets the scores on the validation part only.
        """
        state = sharding.local(self._experiment.mesh, state.replace(opt_state=()))
        variables = state.student()
        result = self._evaluator.evaluate(variables, self._examples("evaluating the student"))
        values = {"eval/miou": result.miou}
        confusions = {"student": result.confusion}
        if self._has_ema and state.ema_params is not None:
            variables = state.teacher()
            result = self._evaluator.evaluate(variables, self._examples("evaluating the EMA"))
            values["eval/miou_ema"] = result.miou
            confusions["ema"] = result.confusion
        names = self._experiment.info.classes
        values |= {
            f"eval/iou/{name}": float(iou) for name, iou in zip(names, result.iou, strict=True)
        }
        self.newest = {"step": step, **values}
        labeller = ImageLabeller(self._experiment, state)
        quality = self._quality.score(labeller)
        values |= pseudo_label_quality.scalars(
            quality, labelled=self._labelled_pixels, classes=names
        )
        scores = ", ".join(
            f"{name[5:]} {value:.2f}" for name, value in values.items() if name.count("/") == 1
        )
        if distributed.is_main():
            print(f"\nevaluation at step {step}: {scores} ({result.images} images)")
            print(format_table(result.confusion, names), flush=True)
            ids = EvalExamples(self._data.validation).ids
            self._log.write_evaluation(
                step,
                confusion=confusions,
                labels=quality,
                image_iou={id: result.image_iou[id] for id in ids},
            )
            if self._draws:
                self._draw(labeller, variables, step, result)
        return values

    def _draw(
        self, labeller: ImageLabeller, variables: PyTree, step: int, result: Evaluation
    ) -> None:
        examples = EvalExamples(self._data.validation)
        made = self._figures.samples(
            labeller, variables, examples, self._evaluator, result.image_iou
        )
        between = self._between if jax.process_count() == 1 else None
        samples = []
        for sample in made:
            samples.append(sample)
            if between is not None:
                between()
        for name, picture in self._figures.draw(step, samples):
            if self._picture is not None:
                self._picture(step, name, picture)
        samples_lib.save(self._samples, step, samples, palette=self._experiment.info.palette)

    def _examples(self, work: str) -> Iterator[EvalExample]:
        """The share of this process."""
        index, count = jax.process_index(), jax.process_count()
        own, most = (
            EvalExamples(self._data.validation, process_index=p, process_count=count)
            for p in (index, 0)
        )
        between, show = self._between or (lambda: None), distributed.is_main()
        with utils.Progress(work, total=len(own), unit="images", show=show) as shown:
            for example in own:
                between()
                yield example
                shown.update()
        for _ in range(len(most) - len(own)):
            between()
