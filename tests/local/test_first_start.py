"""What a first start leaves behind."""

from __future__ import annotations

from pathlib import Path

from secure_dagu.dag.load import load_definition
from secure_dagu.local import first_start


def test_examples_are_written_once_and_what_was_deleted_stays_deleted(tmp_path: Path) -> None:
    dags, suspend, base = tmp_path / "dags", tmp_path / "suspend", tmp_path / "base.yaml"
    assert len(first_start.prepare(dags, suspend, base)) == 2
    written = {path.name for path in dags.glob("*.yaml")}
    assert "example-hello.yaml" in written
    (dags / "example-hello.yaml").unlink()
    base.unlink()
    assert first_start.prepare(dags, suspend, base) == []
    assert {path.name for path in dags.glob("*.yaml")} == written - {"example-hello.yaml"}
    assert not base.exists()


def test_nothing_is_put_beside_dags_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "mine.yaml").write_text("steps: [{run: echo hi}]\n")
    first_start.prepare(tmp_path / "dags", tmp_path / "suspend", tmp_path / "base.yaml")
    assert [path.name for path in (tmp_path / "dags").glob("*.yaml")] == ["mine.yaml"]


def test_no_example_starts_by_itself_and_the_template_changes_nothing(tmp_path: Path) -> None:
    first_start.prepare(tmp_path / "dags", tmp_path / "suspend", tmp_path / "base.yaml")
    base = (tmp_path / "base.yaml").read_text()
    scheduled = []
    for path in (tmp_path / "dags").glob("*.yaml"):
        dag = load_definition(path.read_text(), file=str(path), base_config=base).main
        if dag.schedule:
            scheduled.append(path.stem)
            assert (tmp_path / "suspend" / f"{path.stem}.suspend").exists()
    assert scheduled == ["example-schedule"]
