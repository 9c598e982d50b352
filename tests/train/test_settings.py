import math

import pytest
from pydantic import ValidationError

from lmfuse.train.settings import Training


def test_defaults_are_the_papers():
    paper = Training()
    assert (paper.learning_rate, paper.beta1, paper.beta2, paper.weight_decay, paper.clip) == (1e-5, 0.9, 0.95, 0.1, 1.0)
    assert (paper.step_documents, paper.epochs, paper.warmup_ratio, paper.schedule, paper.seed) == (128, 1.0, 0.008, "cosine", 42)


def test_steps_by_hand():
    settings = Training(batch_documents=3, accumulation=2, epochs=1.5)
    assert settings.read_documents(9) == 14
    assert settings.num_steps(9) == 3
    assert Training(epochs=0.001).num_steps(5) == 1


def test_cosine_by_hand():
    settings = Training(learning_rate=2.0, warmup_ratio=0.2, min_ratio=0.1)
    rates = [settings.learning_rate_at(step, 10) for step in range(10)]
    assert rates[:3] == pytest.approx([2 / 3, 4 / 3, 2.0])
    assert rates[6] == pytest.approx(2 * (0.1 + 0.9 * 0.5))
    assert rates[9] == pytest.approx(2 * (0.1 + 0.45 * (1 + math.cos(math.pi * 7 / 8))))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.008, 0.3, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 17])
def test_rises_to_the_top_once_and_never_stands_still_at_zero(schedule, warmup_ratio, num_steps):
    settings = Training(learning_rate=1.0, schedule=schedule, warmup_ratio=warmup_ratio)
    rates = [settings.learning_rate_at(step, num_steps) for step in range(num_steps)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1.0)
    assert min(rates) > 0
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_cosine_agrees_with_transformers_after_warmup():
    import torch
    from transformers import get_cosine_schedule_with_warmup

    settings = Training(learning_rate=0.5, warmup_ratio=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=3, num_training_steps=30)
    for step in range(30):
        if step >= 3:
            assert settings.learning_rate_at(step, 30) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0}, {"learning_rate": math.inf}, {"epochs": -1.0}, {"batch_documents": 0}, {"warmup_ratio": 1.5}, {"beta1": 1.0},
        {"schedule": "cosin"}, {"precision": "float16"}, {"seed": -1}, {"clip": -1.0}, {"tracker": "tensorbored"}, {"lerning_rate": 1e-3}, {"chunk": 0},
    ],
)  # fmt: skip
def test_wrong_input(wrong):
    with pytest.raises(ValidationError):
        Training(**wrong)
