"""What `make demo` chooses to train, what it says about it, and that README and configs say the same."""

import re
from pathlib import Path

import pytest

from aigc_tf.cli import demo
from aigc_tf.config.checks import validate
from aigc_tf.config.fields import flatten
from aigc_tf.config.files import load_config

ROOT = Path(__file__).parents[2]
STEPS = {demo.FULL: (972, 1000), demo.BRIEF: (200, 150)}


def trainings(minutes):
    """Both parts in both variants, where the full one takes so many minutes for each part."""
    shares = {demo.FULL: 1.0, demo.BRIEF: 0.2}
    return [
        demo.Training(part=part, variant=variant, num_steps=steps, seconds=60 * minutes * shares[variant])
        for variant in shares
        for part, steps in zip(demo.PARTS, STEPS[variant], strict=True)
    ]


@pytest.mark.parametrize("minutes", [0.2, 3, 4.5])
def test_a_fast_machine_trains_to_the_end(minutes):
    variant, message = demo.choose(trainings(minutes), is_full=False)
    assert variant == demo.FULL
    assert f"classifier: 972 steps, about {max(round(minutes), 1)} min, accuracy 0.88" in message
    assert "FULL=1" not in message


@pytest.mark.parametrize("minutes", [5, 15, 100])
def test_a_slow_machine_takes_fewer_steps_and_says_what_the_others_would_take(minutes):
    variant, message = demo.choose(trainings(minutes), is_full=False)
    assert variant == demo.BRIEF
    generator = demo.PARTS[1]
    brief, full = message.split("FULL=1")
    assert f"about {round(2 * minutes)} min on this machine" in brief
    assert f"generator: 150 steps, about {round(minutes / 5)} min, {generator.results[demo.BRIEF]}" in brief
    assert f"generator: 1,000 steps, about {round(minutes)} min, {generator.results[demo.FULL]}" in full


def test_a_slow_machine_trains_to_the_end_where_it_is_asked_to():
    variant, message = demo.choose(trainings(15), is_full=True)
    assert variant == demo.FULL
    assert "generator: 1,000 steps, about 15 min" in message


def test_the_choice_is_written_and_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "_trainings", lambda part: [one for one in trainings(15) if one.part == part])
    folder = tmp_path / "demo"
    demo.main(str(folder), is_full=False)
    assert (folder / "variant").read_text() == demo.BRIEF
    assert "classifier: 200 steps" in capsys.readouterr().out
    monkeypatch.setattr(demo, "_trainings", lambda part: pytest.fail("it measured again"))
    demo.main(str(folder), is_full=False)
    assert (folder / "variant").read_text() == demo.BRIEF
    assert "resumes" in capsys.readouterr().out


@pytest.mark.parametrize("part", demo.PARTS, ids=lambda part: part.name)
def test_the_variants_are_one_experiment_with_two_schedules(part, monkeypatch):
    monkeypatch.chdir(ROOT)
    full, brief = (load_config(part.path(variant)) for variant in (demo.FULL, demo.BRIEF))
    validate(brief)
    fields = flatten(full)
    changed = {name for name, value in flatten(brief).items() if value != fields[name]}
    assert {name.rpartition(".")[2] for name in changed} == {"num_steps", "warmup_steps"}


@pytest.mark.parametrize("variant", STEPS)
def test_readme_and_configs_say_what_the_demo_says(variant, monkeypatch):
    monkeypatch.chdir(ROOT)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"at most {demo.FULL_MINUTES} minutes" in readme
    for part, steps in zip(demo.PARTS, STEPS[variant], strict=True):
        assert load_config(part.path(variant)).training.num_steps == steps
        [number] = [word for word in part.results[variant].split() if word[0].isdigit()]
        measured = re.findall(r"\b\d\.\d{3}\b", Path(part.path(variant)).read_text())
        assert float(number) in [round(float(digits), 2) for digits in measured]
        assert f"{steps:,} steps" in readme
        assert number in readme
