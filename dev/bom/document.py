"""The CycloneDX document of an image: the same image gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import NAMESPACE_OID, uuid5

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from dev.bom.packages import Package
from packageurl import PackageURL

DISTRIBUTION = "debian-12"


@dataclass(frozen=True)
class Image:
    """The image that a document is about."""

    name: str
    version: str
    digest: str
    """Of its manifest, as ``sha256:…``."""
    made: int
    """Seconds since 1970 that the image is dated to."""


def document(
    image: Image,
    python: Iterable[Package],
    npm: Iterable[Package],
    debian: Iterable[Package],
) -> str:
    """The document as JSON of CycloneDX 1.6."""
    root = Component(
        type=ComponentType.CONTAINER,
        name=f"espalier/{image.name}",
        version=image.version,
        bom_ref="image",
        purl=PackageURL("oci", name=image.name, version=image.digest),
        hashes=[_sha256(image.digest.removeprefix("sha256:"))],
        licenses=[LicenseExpression("Apache-2.0")],
    )
    components = [*map(_python, python), *map(_npm, npm), *map(_debian, debian)]
    bom = Bom(
        serial_number=uuid5(NAMESPACE_OID, image.digest),
        metadata=BomMetaData(component=root, timestamp=datetime.fromtimestamp(image.made, UTC)),
        components=components,
    )
    bom.register_dependency(root, components)
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)


def _python(package: Package) -> Component:
    # The package of our name on PyPI is another project.
    kind = "generic" if package.name == "espalier" else "pypi"
    purl = PackageURL(kind, name=package.name, version=package.version)
    comment = "the files of this version when it was pinned, one of which is installed"
    return _library(package, purl, comment, map(_sha256, package.sha256))


def _npm(package: Package) -> Component:
    scope, _, name = package.name.rpartition("/")
    purl = PackageURL("npm", scope or None, name, package.version)
    hashes = [HashType(alg=HashAlgorithm.SHA_512, content=package.sha512)]
    return _library(package, purl, "the file that the console's page is bundled from", hashes)


def _library(
    package: Package, purl: PackageURL, comment: str, hashes: Iterable[HashType]
) -> Component:
    """A package whose files are known by their hashes, and what these files are to the image."""
    address = XsUri(str(purl))
    files = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION, url=address, comment=comment, hashes=hashes
    )
    return Component(
        type=ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        purl=purl,
        bom_ref=str(purl),
        licenses=map(LicenseExpression, package.licences),
        external_references=[files] if files.hashes else (),
    )


def _debian(package: Package) -> Component:
    qualifiers = {"arch": package.architecture, "distro": DISTRIBUTION}
    purl = PackageURL("deb", "debian", package.name, package.version, qualifiers)
    licences: Iterable[License] = [DisjunctiveLicense(name=name) for name in package.licences]
    return Component(
        type=ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        purl=purl,
        bom_ref=str(purl),
        licenses=licences,
    )


def _sha256(content: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=content)
