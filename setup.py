"""What is installed: one package, `lifelong`, made of the folders of this repository. All else is in pyproject.toml."""

from setuptools import find_packages, setup

FACE = "agent/api"  # `import lifelong`
FOLDERS = ("agent", "envs", "replay", "kernels", "configs")  # `lifelong.agent`, ...

found = find_packages(include=[pattern for folder in FOLDERS for pattern in (folder, f"{folder}.*")])
inside_face = FACE.replace("/", ".")
setup(
    packages=["lifelong", *(f"lifelong.{name}" for name in found if not name.startswith(inside_face))],
    package_dir={"lifelong": FACE, **{f"lifelong.{folder}": folder for folder in FOLDERS}},
    include_package_data=False,
)
