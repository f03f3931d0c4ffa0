"""Archives that were downloaded, unpacked whole or not at all."""

import gzip
import os
import shutil
import tarfile
import zipfile
import zlib
from pathlib import PurePosixPath

from tqdm import tqdm

from runtime.download import readable
from runtime.errors import BadInput


class Damaged(Exception):
    """A downloaded file is not what it should be."""


def unpack(archive, folder, targets):
    """Unpack the targets, and nothing else, of a .zip or .tar.gz into a folder.

    They are unpacked beside their places and moved there at the end, so that what stands there is whole.

    Raises:
        Damaged: it is no such archive, fails its checksums, lacks a target, or names a file outside the folder.
        BadInput: a full disk. OSError: the folder cannot be written.
    """
    temporary = folder / f".{archive.name}.unpacking"
    if temporary.exists():
        shutil.rmtree(temporary)  # of a run that was killed
    try:
        with zipfile.ZipFile(archive) if archive.suffix == ".zip" else tarfile.open(archive, "r:gz") as opened:
            extract(opened, temporary, targets)
        for target in targets:
            place = folder / target
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / target, place)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise Damaged(f"it is damaged ({error})") from error
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def extract(opened, folder, targets):
    """Extract the targets of an open ZipFile or TarFile into a folder. Raises Damaged and what these raise."""
    if isinstance(opened, zipfile.ZipFile):
        members = [(member.filename, member.file_size, member) for member in opened.infolist() if not member.is_dir()]
        open_member = opened.open
    else:
        members = [(member.name, member.size, member) for member in opened.getmembers() if member.isfile()]
        open_member = opened.extractfile
    wanted = []
    for name, size, member in members:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in name:
            raise Damaged(f"it names {name!r}, which lies outside the folder")
        if any(target in (str(path), *map(str, path.parents)) for target in targets):
            wanted.append((path, size, member))
    for target in targets:
        if not any(target in (str(path), *map(str, path.parents)) for path, _, _ in wanted):
            raise Damaged(f"it holds no {target}")
    total, free = sum(size for _, size, _ in wanted), shutil.disk_usage(folder.parent).free
    if total > free:
        raise BadInput(f"{folder.parent} has {readable(free)} free, and unpacking takes {readable(total)}; make room, "
                       "or choose another folder")
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"unpacking {targets[0]}") as progress:
        for path, _, member in wanted:
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            with open_member(member) as packed, open(place, "wb") as file:
                while piece := packed.read(1 << 20):
                    file.write(piece)
                    progress.update(len(piece))
    if isinstance(opened, tarfile.TarFile):
        while opened.fileobj.read(1 << 20):
            pass  # gzip compares its checksum at the very end
