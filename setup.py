"""What setup.cfg cannot say: folders outside the package that a wheel carries, too (the app, sample-data), and the module that stands
in for pydicom-seg, which monailabel imports."""

from setuptools import find_packages, setup

FOLDERS = {
    "pydicom_seg": "ultrarefiner_monai/standins/pydicom_seg",
    "ultrarefiner_monai._app": "apps/ultrarefiner",
    "ultrarefiner_monai._samples": "sample-data",
}

setup(
    packages=[*find_packages(include=["ultrarefiner_monai*"]), *FOLDERS],
    package_dir=FOLDERS,
    package_data={
        "ultrarefiner_monai._app": [
            "*.py", "config.yaml", "lib/**/*.py", "model/*.safetensors", "train/*.yaml", "viewer/built/*.js",
        ],
        "ultrarefiner_monai._samples": ["*", "labels/**/*"],
    },
)  # fmt: skip
