"""docs/network.md makes certificates: they work as they are told to."""

import re
import subprocess
from contextlib import closing
from pathlib import Path

from tests.harness import PATIENCE, Watch, served

GUIDE = (Path(__file__).parent.parent / "docs" / "network.md").read_text()


def test_its_certificates_work(directory: Path) -> None:
    make, use = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    subprocess.run(["sh", "-ec", make], cwd=directory, check=True, timeout=PATIENCE, capture_output=True)
    tree = directory / "tree"
    tree.mkdir()
    serve, watch = (re.findall(r"(--\w+) ([\w.]+\.(?:pem|key))", line) for line in use.splitlines())

    def credentials(options: list[tuple[str, str]]) -> list[str]:
        assert [name for name, _ in options] == ["--cert", "--key", "--ca"]
        return [word for name, file in options for word in (name, str(directory / file))]

    state = ["--state-dir", str(directory / "state")]
    with (
        served(tree, "--listen", "tls://localhost:0", *credentials(serve), *state) as daemon,
        closing(Watch(daemon.tls, *credentials(watch), "--events", "1")) as listener,
    ):
        (tree / "a").mkdir()
        assert [line["path"] for line in listener.rest()] == ["a"]
