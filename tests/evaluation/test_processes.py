"""Two processes with different numbers of examples get the totals of all."""

import json
import subprocess
import sys

import jax
import numpy as np

from semivl_jax.evaluation.evaluator import Evaluator
from tests.command import ROOT, environment, free_address
from tests.evaluation import toy


def test_two_processes_sum_their_counts(tmp_path):
    command = [sys.executable, "-m", "tests.evaluation.process_worker", free_address()]
    workers = [
        subprocess.Popen(
            [*command, str(index), str(tmp_path / str(index))],
            env=environment(devices=2) | {"PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        errors = [worker.communicate(timeout=180)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    evaluator = Evaluator(
        toy.apply, toy.window(), num_classes=toy.CLASSES, devices=jax.devices()[:1]
    )
    alone = evaluator.evaluate(toy.make_variables(), toy.make_examples())
    for index, worker in enumerate(workers):
        assert worker.returncode == 0, errors[index]
        found = json.loads((tmp_path / str(index)).read_text())
        assert found["images"] == len(toy.make_examples())
        np.testing.assert_array_equal(found["confusion"], alone.confusion)
        assert found["image_iou"] == alone.image_iou
