"""One network taught by several."""

import copy

import pytest
import torch
from problems import small, square, task
from torch import nn

import isopath as ip
from networks import Masked


def teacher():
    return ip.Ensemble([small(seed) for seed in range(3)])


def test_a_student_comes_to_say_what_its_teacher_says():
    x, _ = square(300)
    goal, student = teacher(), small(9)
    learned = ip.distill(goal, student, x, epochs=120, rate=1e-2, batch_size=64)

    def away(model):
        return float((goal(x).exp() - model(x).softmax(1)).abs().mean().detach())

    assert away(learned) < 0.1 * away(student)


def test_it_starts_from_the_students_weights_and_changes_nobody():
    x, _ = square(64)
    goal, student = teacher(), small(9).eval()
    states = [copy.deepcopy(m.state_dict()) for m in (goal, student)]
    rng = torch.get_rng_state()
    learned = ip.distill(goal, student, x, epochs=1, rate=1e-9)
    assert torch.allclose(learned(x), student(x), atol=1e-4)
    for module, state in zip((goal, student), states):
        assert all(torch.equal(state[name], t) for name, t in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert not learned.training and all(p.grad is None for p in learned.parameters())


def test_the_divergence_is_zero_where_they_agree_whatever_the_temperature():
    x, _ = square(64)
    student = small(9)

    def plain(parameters):
        return torch.optim.SGD(parameters, 0.1)  # Adam would divide rounding by rounding

    for temperature in (1.0, 4.0):
        learned = ip.distill(student, student, x, epochs=2, temperature=temperature, optimizer=plain)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(learned.parameters(), student.parameters()))


class Noted(nn.Module):
    """Counts the rows that it sees."""

    def __init__(self):
        super().__init__()
        self.inner, self.register = small(), None
        self.register_buffer("rows", torch.zeros(()))

    def forward(self, x):
        seen.append(len(x))
        return self.inner(x)


seen: list[int] = []


def test_the_teacher_runs_once_over_the_data_or_on_every_augmented_batch():
    x, _ = square(50)
    for augment, passes in ((None, 1), (lambda x, g: x + 0.01 * torch.randn(x.shape, generator=g), 4)):
        seen.clear()
        ip.distill(Noted(), small(1), x, epochs=4, batch_size=16, augment=augment)
        assert sum(seen) == 2 + 50 * passes  # two rows first: whether it runs on them


def test_labels_are_used_where_they_are_wanted():
    wrong = ip.Task(square(200)[0], (square(200)[1] + 1) % 4)
    learned = ip.distill(small(2), small(3), wrong, epochs=60, rate=1e-2, labels=1.0)
    assert ip.evaluate(learned, wrong).accuracy > 0.85
    with pytest.raises(TypeError, match="needs a Task"):
        ip.distill(small(2), small(3), wrong.x, labels=0.5)


def test_the_same_seed_gives_the_same_bits_with_dropout_too():
    model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 4))
    a, b, c = (ip.distill(small(), model, square(40)[0], epochs=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(a[0].weight, b[0].weight) and not torch.equal(a[0].weight, c[0].weight)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"epochs": 0}, "epochs must be a whole number >= 1"),
        ({"temperature": 0.0}, "temperature and rate"),
        ({"labels": 2.0}, "labels"),
    ],
)
def test_bad_options(option, said):
    with pytest.raises(ValueError, match=said):
        ip.distill(small(), small(1), square()[0], **option)


def test_outputs_that_differ_in_shape():
    with pytest.raises(ValueError, match=r"student's outputs have shape \(20, 3\), the teacher's \(20, 4\)"):
        ip.distill(small(), nn.Linear(2, 3), task(20).x)


def test_a_regression_is_distilled_by_squared_error():
    x = square(200)[0]
    goal = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    student = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    learned = ip.distill(goal, student, x, epochs=60, rate=1e-2, batch_size=32, divergence="squared_error")
    with torch.no_grad():
        away = [float((goal(x) - m(x)).square().mean()) for m in (student, learned)]
    assert away[1] < 0.02 * away[0]
    with pytest.raises(ValueError, match="C = 1 have no classes"):
        ip.distill(goal, student, x)


def test_a_last_batch_of_one_row_and_a_student_without_parameters():
    norm = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    assert not torch.equal(ip.distill(small(), norm, square(17)[0], epochs=1, batch_size=16)[0].weight, norm[0].weight)
    with pytest.raises(ValueError, match="Flatten, has no trainable parameter"):
        ip.distill(small(), nn.Flatten(), square(10)[0])


def test_of_a_task_with_a_slice_its_outputs_alone():
    x, y = square(200)
    learned = ip.distill(small(1), small(2), ip.Task(x, y % 2, outputs=slice(0, 2)), epochs=40, rate=1e-2)
    with torch.no_grad():
        own, other = (m(x)[:, :2].softmax(1) for m in (learned, small(1)))
        assert float((own - other).abs().mean()) < 0.05
        assert float((learned(x).softmax(1) - small(1)(x).softmax(1)).abs().mean()) > 0.05


def test_classes_on_the_second_axis():
    torch.manual_seed(0)
    x, goal, student = torch.randn(40, 1, 5, 5), nn.Conv2d(1, 3, 3), nn.Conv2d(1, 3, 3)
    wanted = goal(x).argmax(1)
    options = {"epochs": 300, "rate": 3e-2}
    learned = ip.distill(goal, student, x, dim=1, **options)
    assert float((learned(x).argmax(1) == wanted).double().mean()) > 0.95
    task = ip.Task(x, wanted, loss=nn.functional.cross_entropy)
    for same in (ip.distill(goal, student, task, **options), ip.distill(goal, student, x, dim=-3, **options)):
        assert torch.equal(same.weight, learned.weight)
    by_labels = ip.distill(goal, student, task, labels=1.0, **options)
    assert float((by_labels(x).argmax(1) == wanted).double().mean()) > 0.95
    with pytest.raises(ValueError, match=r"have their classes on one of 4 axes; say on which with dim="):
        ip.distill(goal, student, x)
    with pytest.raises(ValueError, match=r"got \(40,\); of a regression"):
        flat = nn.Sequential(nn.Flatten(), nn.Linear(25, 1), nn.Flatten(0))
        ip.distill(flat, flat, x, batch_size=40)


def test_a_class_that_the_teacher_rules_out():
    torch.manual_seed(0)
    goal, student, x = Masked(), nn.Linear(4, 3).double(), torch.randn(64, 4).double()
    learned = ip.distill(goal, student, x, epochs=300, rate=3e-2)
    assert float((learned(x).softmax(1) - goal(x).softmax(1)).abs().max()) < 0.05
    both = ip.distill(goal, Masked(), x, epochs=1)
    assert both.layer.weight.isfinite().all()


def test_labels_of_a_few_rows_and_weights_of_rows():
    x, y = square(64)
    goal = small(1)
    none = ip.distill(goal, small(), x, epochs=2, batch_size=16)
    some = torch.where(torch.arange(64) < 8, y, -100)
    few = ip.distill(goal, small(), ip.Task(x, some), epochs=2, batch_size=16, labels=0.5)
    assert few[0].weight.isfinite().all() and not torch.equal(few[0].weight, none[0].weight)
    wrong = torch.where(torch.arange(64) < 32, y, 3 - y)
    weights = (torch.arange(64) < 32).float()
    left_out = ip.distill(goal, small(), ip.Task(x, wrong, weights=weights), epochs=2, batch_size=16, labels=0.5)
    right = ip.distill(goal, small(), ip.Task(x, y, weights=weights), epochs=2, batch_size=16, labels=0.5)
    assert torch.equal(left_out[0].weight, right[0].weight)


def test_the_outputs_of_a_task_are_those_that_are_taught():
    class Two(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.logits, self.new = small(seed), small(seed + 1)

        def forward(self, x):
            return {"logits": self.logits(x), "new": self.new(x)}

    x, y = square(64)
    goal, student = Two(0), Two(5)
    for teacher in (goal, ip.Ensemble([goal], output="new")):
        learned = ip.distill(teacher, student, ip.Task(x, y, outputs="new"), epochs=1)
        assert torch.equal(learned.logits[0].weight, student.logits[0].weight)
        assert not torch.equal(learned.new[0].weight, student.new[0].weight)


def test_inputs_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"Sequential does not run on the data: got 0: \(2, 3\)"):
        ip.distill(small(), small(), torch.randn(5, 3))


def test_a_regression_of_one_number_a_row_or_on_every_place():
    torch.manual_seed(0)
    x, options = torch.randn(40, 2), {"divergence": "squared_error", "epochs": 300, "rate": 2e-2, "batch_size": 5}
    goal, student = (nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)) for _ in "ab")
    assert torch.allclose(ip.distill(goal, student, x, **options)(x), goal(x), atol=1e-2)
    images, goal, student = torch.randn(20, 1, 4, 4), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    assert torch.allclose(ip.distill(goal, student, images, **options)(images), goal(images), atol=1e-2)


def test_a_tasks_axis_of_classes_holds_for_an_ensemble_of_logits():
    torch.manual_seed(0)
    x, goal, student = torch.randn(30, 1, 5), nn.Conv1d(1, 3, 1), nn.Conv1d(1, 3, 1)
    task = ip.Task(x, goal(x).argmax(1), loss=nn.functional.cross_entropy)
    alone, together = (ip.distill(t, student, task, epochs=3) for t in (goal, ip.Ensemble([goal], mean="logits")))
    assert torch.allclose(alone.weight, together.weight, atol=1e-5)
