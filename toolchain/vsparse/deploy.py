"""The deployed files of an artifact: models stamped with their certificate, the `device/` folder, an engine where one can be built."""

from __future__ import annotations

from pathlib import Path

from vsparse import artifact
from vsparse.errors import UnavailableError
from vsparse.export import stamp
from vsparse.target import Target


def finish_models(directory: Path, target: Target) -> None:
    """Stamps the models with the hash of their certificate (their content hash stays) and writes `device/` for the target."""
    from vsparse.export import write_device_folder
    from vsparse.verify.claims import read_certificate

    model = directory / artifact.MODEL
    certificate_sha256 = ""
    for path, certificate in ((model, directory / artifact.CERTIFICATE), (directory / artifact.DENSE_MODEL, directory / artifact.DENSE_CERTIFICATE)):
        if path.exists() and certificate.exists():
            digest = read_certificate(certificate).certificate_sha256
            stamp(path, {"certificate": digest, "target": target.name})
            certificate_sha256 = certificate_sha256 or digest
    write_device_folder(directory / "device", [model], target, certificate_sha256)
    if target.runtime.name == "tensorrt":
        from vsparse.export import build_engine

        try:
            build_engine(model, model.with_suffix(".engine"), precision="fp32", target=target)
        except UnavailableError:
            pass  # no GPU or no TensorRT here: device/ holds what builds the engine there
