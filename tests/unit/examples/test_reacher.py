"""The arm is driven as documented, and the head clones its controller within the example's bars."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from arm import (
    CHANNELS,
    EPISODE_STEPS,
    GEAR,
    LINKS,
    STEP_SECONDS,
    Arm,
    Step,
    controller,
    run_episode,
)
from compare import TanhHead
from train import HIDDEN, _gradients, collect, evaluate, fit, load, save


@pytest.fixture(scope="module")
def arm():
    with Arm() as opened:
        yield opened


@pytest.fixture(scope="module")
def demonstrations(arm):
    return collect(arm, seed=0)


@pytest.fixture(scope="module")
def head(demonstrations):
    return fit(demonstrations, seed=0)


def mean_return(episodes):
    return np.mean([episode.total for episode in episodes])


def test_constants_are_those_of_the_simulator():
    env = gymnasium.make("Reacher-v5")
    model = env.unwrapped.model
    assert env.spec.max_episode_steps == EPISODE_STEPS
    assert env.unwrapped.dt == pytest.approx(STEP_SECONDS)
    assert model.actuator_gear[:, 0] == pytest.approx([GEAR, GEAR])
    assert [model.body("body1").pos[0], model.body("fingertip").pos[0]] == pytest.approx(LINKS)
    env.close()


def test_readings_agree_with_the_simulator_s_own_state():
    env = gymnasium.make("Reacher-v5")
    observation, _ = env.reset(seed=3)
    data = env.unwrapped.data
    distance = np.linalg.norm(data.body("fingertip").xpos - data.body("target").xpos)
    expected = [*data.qpos[:2], *data.qvel[:2]]
    command = np.array([0.25, -0.5])
    env.step(command)
    expected += [*data.qfrc_actuator[:2], distance]
    env.close()
    readings = Step(0, observation, command, command, 0.0).readings()
    assert len(readings) == len(CHANNELS)
    assert readings == pytest.approx(expected)


def test_expert_reaches_its_known_return_and_beats_random_actions(arm):
    rng = np.random.default_rng(0)
    expert = mean_return(evaluate(arm, controller, range(30)))
    random = mean_return(evaluate(arm, lambda _: rng.uniform(-1, 1, 2), range(5)))
    assert expert == pytest.approx(-5.63, abs=0.05)
    assert random < 3 * expert


def test_same_seed_same_episode(arm):
    first, again, other = evaluate(arm, controller, [7, 7, 8])
    assert first.total == again.total
    assert np.array_equal(first.observations, again.observations)
    assert first.total != other.total


def test_each_step_is_reported_in_order_with_what_was_recorded(arm):
    steps = []
    episode = run_episode(arm, controller, 1, on_step=steps.append)
    assert [step.index for step in steps] == list(range(EPISODE_STEPS))
    assert steps[-1].seconds == pytest.approx((EPISODE_STEPS - 1) * STEP_SECONDS)
    assert np.array_equal([step.command for step in steps], episode.commands)
    assert sum(step.reward for step in steps) == episode.total


def test_commands_out_of_range_are_clipped_before_the_motors(arm):
    steps = []
    run_episode(arm, lambda _: np.array([5.0, -5.0]), 0, on_step=steps.append)
    assert all(np.array_equal(step.applied, [1.0, -1.0]) for step in steps)


def test_exploration_disturbs_the_motors_but_not_the_recorded_command(arm):
    steps = []
    run_episode(arm, controller, 0, perturb=lambda command: command + 0.1, on_step=steps.append)
    assert all(np.array_equal(step.command, controller(step.observation)) for step in steps)
    assert all(np.allclose(step.applied, step.command + 0.1) for step in steps)


def test_demonstrations_and_training_depend_on_the_seed_alone(arm):
    one, same, other = (collect(arm, seed=seed, episodes=5) for seed in (4, 4, 5))
    assert np.array_equal(one.observations, same.observations)
    assert not np.array_equal(one.observations, other.observations)
    trained, again, reseeded = (fit(one, seed=seed, epochs=3) for seed in (4, 4, 5))
    assert np.array_equal(trained.hidden_weight, again.hidden_weight)
    assert np.array_equal(trained.output_weight, again.output_weight)
    assert not np.array_equal(trained.hidden_weight, reseeded.hidden_weight)


def test_gradients_are_those_of_the_loss_with_weight_decay():
    rng = np.random.default_rng(0)
    shapes = [(10, HIDDEN), (HIDDEN,), (HIDDEN, 2), (2,)]
    weights = [0.3 * rng.normal(size=shape) for shape in shapes]
    inputs, targets = rng.normal(size=(20, 10)), rng.normal(size=(20, 2))
    decay = np.array([1e-4, 0.0, 1e-4, 0.0])
    _, gradients = _gradients(weights, inputs, targets)
    for place, shape in enumerate(shapes):
        index = tuple(size // 2 for size in shape)
        sides = []
        for delta in (1e-6, -1e-6):
            moved = [weight.copy() for weight in weights]
            moved[place][index] += delta
            loss, _ = _gradients(moved, inputs, targets)
            # the loss is a mean over both outputs, the gradient that of their sum
            sides.append(2 * loss)
        slope = (sides[0] - sides[1]) / 2e-6
        assert gradients[place][index] == pytest.approx(
            slope + decay[place] * weights[place][index], rel=1e-5, abs=1e-8
        )


def test_head_returns_within_one_percent_of_the_expert_on_unseen_seeds(arm, head):
    expert = mean_return(evaluate(arm, controller, range(30)))
    assert mean_return(evaluate(arm, head, range(30))) == pytest.approx(expert, rel=0.01)


def test_head_s_pre_activations_stay_small_in_closed_loop(arm, head):
    seen = np.concatenate([run.observations for run in evaluate(arm, head, range(30))])
    hidden = (seen - head.input_mean) / head.input_scale @ head.hidden_weight.T + head.hidden_bias
    assert np.abs(hidden).max() < 8.0


def test_saved_head_is_the_trained_head(head, demonstrations, tmp_path):
    save(head, demonstrations, tmp_path)
    rows = np.load(tmp_path / "calibration.npy", allow_pickle=False)
    assert np.array_equal(rows, demonstrations.observations)
    assert np.array_equal(load(tmp_path)(rows), head(rows))


def test_replacing_tanh_afterwards_misses_the_action_bar_that_the_cubic_head_meets(
    arm, demonstrations
):
    tanh = TanhHead(demonstrations, alpha=1e-4, seed=0)
    runs = evaluate(arm, tanh.replaced(3, per_unit=False), range(10))
    error = [run.commands - tanh(run.observations) for run in runs]
    assert np.abs(error).max() > 1e-2
