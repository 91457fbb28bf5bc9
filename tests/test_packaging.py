"""What is shipped is what is in the tree, and the tree is clean."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE_DIR: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Runs a command, and fails with all it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout


def sources() -> set[str]:
    """The files that an installation must hold, by their names in it."""
    files = {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
        for package, folder in PACKAGE_DIR.items()
        for path in (ROOT / folder).rglob("*.py*")
        if path.suffix in (".py", ".pyi")
    }
    return files | {"ppl_vae/py.typed"}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel and a source distribution, built from a copy so that no build folder stays behind."""
    copy = tmp_path_factory.mktemp("build") / "checkout"
    unwanted = ignore_patterns(".*", "build", "dist", "__pycache__", "*.egg-info")
    copytree(ROOT, copy, symlinks=True, ignore=unwanted)
    rmtree(copy / "runs", ignore_errors=True)  # of a user; not ppl_vae/runs
    build = "import setuptools.build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"
    run(sys.executable, "-c", build, cwd=copy)
    (wheel,) = (copy / "dist").glob("*.whl")
    (sdist,) = (copy / "dist").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def test_the_package_list_names_every_package() -> None:
    packages = PROJECT["tool"]["setuptools"]["packages"]
    found = {file.rpartition("/")[0] for file in sources() if file.endswith("/__init__.py")}
    assert sorted(packages) == sorted(package.replace("/", ".") for package in found)


@pytest.mark.parametrize("name", ["models", "guides"])
def test_the_links_lead_to_the_folders(name: str) -> None:
    link = ROOT / "ppl_vae" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"


def test_the_wheel_holds_every_source_file_once(distributions: dict[str, Path]) -> None:
    with zipfile.ZipFile(distributions["wheel"]) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        (license,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
        assert archive.read(license) == (ROOT / "LICENSE").read_bytes()
    assert sorted(names) == sorted(sources())


def test_the_source_distribution_builds_the_same_wheel(
    distributions: dict[str, Path], tmp_path: Path
) -> None:
    with tarfile.open(distributions["sdist"]) as archive:
        # Python before 3.11.4 has no `filter`; 3.12 warns unless one is chosen.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(tmp_path)
    (unpacked,) = tmp_path.iterdir()
    build = "import setuptools.build_meta as b; b.build_wheel('dist')"
    run(sys.executable, "-c", build, cwd=unpacked)
    (wheel,) = (unpacked / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as rebuilt, zipfile.ZipFile(distributions["wheel"]) as built:
        assert sorted(rebuilt.namelist()) == sorted(built.namelist())


def test_the_wheel_works_outside_the_checkout(
    distributions: dict[str, Path], tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install"),
        *("--quiet", "--no-deps", "--no-index", distributions["wheel"]),
        cwd=tmp_path,
    )
    # The dependencies come from the environment that runs the tests, after the venv's own folder.
    own = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
    (own / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    program = """
from pathlib import Path
import ppl_vae, ppl_vae.models, ppl_vae.guides
for module in (ppl_vae, ppl_vae.models, ppl_vae.guides):
    assert module.__file__ is not None
    print(Path(module.__file__).resolve())
    for name in module.__all__:
        getattr(module, name)
"""
    files = run(python, "-c", program, cwd=tmp_path).split()
    assert files == [
        str(own.resolve() / name / "__init__.py")
        for name in ("ppl_vae", "ppl_vae/models", "ppl_vae/guides")
    ]
    assert "train" in run(tmp_path / "venv" / "bin" / "ppl-vae", "--help", cwd=tmp_path)


def test_the_version_is_the_distribution_s(distributions: dict[str, Path]) -> None:
    import ppl_vae

    assert distributions["wheel"].name.split("-")[:2] == ["ppl_vae", ppl_vae.__version__]


@pytest.mark.parametrize(
    "command",
    [*("ruff check .", "ruff format --check ."), pytest.param("mypy", marks=pytest.mark.slow)],
)
def test_the_tree_is_clean(command: str) -> None:
    run(sys.executable, "-m", *command.split())
