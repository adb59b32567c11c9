"""The index file as it is read: complete and checked before anybody sees it. What an edited one says of places is not
believed: where images and labels lie is the app's own knowledge, and an entry is a plain name in these places or nothing.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastoreModel

from lib.names import check_info, is_name
from ultrarefiner_monai.types import InputError
from ultrarefiner_monai.workfolder import LABEL_EXTENSIONS

logger = logging.getLogger(__name__)


def read_index(text: str, own: LocalDatastoreModel, extensions: tuple[str, ...]) -> LocalDatastoreModel:
    """``own`` with the entries of an index file; extensions: of images. ValueError where it is no index at all."""
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(values, dict) or not isinstance(values.get("objects", {}), dict):
        raise ValueError("not the index of a studies folder")
    objects = read_entries(values.get("objects", {}), extensions)
    return own.model_copy(update={"objects": objects})


def read_entries(rows: dict[str, Any], extensions: tuple[str, ...]) -> dict[str, ImageLabelModel]:
    """image id -> entry, of those that can be believed; the others are dropped and said."""
    objects, dropped = {}, []
    for image_id, row in rows.items():
        try:
            entry = ImageLabelModel.model_validate(row)
        except (ValueError, RecursionError):
            dropped.append(image_id)
            continue
        ext = entry.image.ext
        if not is_name(image_id) or (ext and (ext.lower() not in extensions or not is_name(image_id + ext))):
            dropped.append(image_id)
            continue
        labels = {t: _data(v, image_id + v.ext) for t, v in entry.labels.items() if _is_label(image_id, t, v)}
        dropped += [f"{image_id} ({tag})" for tag in entry.labels.keys() - labels.keys()]
        objects[image_id] = ImageLabelModel(image=_data(entry.image, ""), labels=labels)
    if dropped:
        shown = ", ".join(ascii(name)[:80] for name in dropped[:5])
        logger.error(
            "the index was edited or damaged: %d entries are no plain names and dropped: %s", len(dropped), shown
        )
    return objects


def _is_label(image_id: str, tag: str, label: DataModel) -> bool:
    return is_name(tag) and label.ext.lower() in LABEL_EXTENSIONS and is_name(image_id + label.ext)


def _data(found: DataModel, name: str) -> DataModel:
    """With an info that can stand in a reply, and a name that is one. name: what it must be, empty for any."""
    info = found.info
    try:
        check_info(info, "info")
        json.dumps(info, allow_nan=False)
    except (InputError, ValueError, RecursionError):
        info = {}
    if "name" in info and (info["name"] != name if name else not is_name(info["name"])):
        info = {key: value for key, value in info.items() if key != "name"} | ({"name": name} if name else {})
    return found if info is found.info else DataModel(ext=found.ext, info=info)
