"""What is put off is not lost."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_a_module_that_is_put_off_is_read_when_something_is_taken_out_of_it() -> None:
    assert run(
        "import sys\nimport secure_dagu.cli.lean\nimport shutil\n"
        "print('lzma' in sys.modules)\nprint(shutil.rmtree.__module__, 'lzma' in sys.modules)\n"
        "import shutil as again\nprint(again is shutil, again.rmtree is shutil.rmtree, again.__file__ is not None)"
    ) == ("False\nshutil True\nFalse True True\n")


def test_names_parts_and_attributes_of_a_package_that_is_put_off_can_be_imported() -> None:
    assert run(
        "import secure_dagu.cli.lean\n"
        "from importlib.metadata import version\nimport importlib.metadata._meta as part\n"
        "print(version('grpcio') != '', part.__name__)\n"
        "from google.protobuf.internal import python_message\n"
        "print(python_message.GeneratedProtocolMessageType.__name__)"
    ) == ("True importlib.metadata._meta\nGeneratedProtocolMessageType\n")


def test_what_is_there_already_stays_as_it_is() -> None:
    assert run("import shutil\nimport secure_dagu.cli.lean\nimport shutil as again\nprint(again is shutil)") == (
        "True\n"
    )


def test_an_unknown_name_is_missing_as_ever() -> None:
    assert run(
        "import secure_dagu.cli.lean\nimport shutil\nprint(hasattr(shutil, 'no_such'))\n"
        "print(hasattr(shutil, '__no_such__'))"
    ) == ("False\nFalse\n")
