"""A digest of all bytes of a network's weights, which kept states depend on.

For a large network it is kept in the store's folder, so that the weights are not read a second
time just to name them, keyed by the file system's metadata of the checkpoint files.
"""

import hashlib
import logging
import re
from pathlib import Path

from sounding.engine.network import Network
from sounding.engine.prefix.store_folder import open_root

_LARGE_BYTES = 1 << 30  # what one core hashes in about a second
_DIGEST = re.compile("[0-9a-f]{64}")

_log = logging.getLogger(__name__)


def weights_digest(network: Network, facts: str = "", store: Path | None = None) -> str:
    """SHA-256 over names, formats and all bytes of the weights.

    That of a large network is looked up in the folder of a prefix store, where `facts` are those of
    the files it was read from (see `files.file_facts`), and kept there. Raises ValueError as
    `open_root` does.
    """
    if store is None or not facts or network.nbytes < _LARGE_BYTES:
        return network.fingerprint()
    name = hashlib.sha256(f"{facts} {network.dtype_name}".encode()).hexdigest()[:32] + ".digest"
    try:
        folder = open_root(store)
    except OSError as error:  # the store logs by itself that it cannot be used
        _log.info("the digest of the weights is not kept: %s", error)
        return network.fingerprint()
    try:
        found = folder.read(name).decode("ascii", "replace") if name in folder.names() else ""
        if _DIGEST.fullmatch(found) is None:
            found = network.fingerprint()
            folder.write(name, found.encode())
    except OSError as error:
        _log.warning("the digest of the weights is not kept: %s", error)
        found = network.fingerprint()
    finally:
        folder.close()
    return found
