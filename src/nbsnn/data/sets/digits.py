"""The 8×8 handwritten digits bundled with scikit-learn (1,797 images), which need no download."""

import torch

from nbsnn.data.download import DownloadProgress
from nbsnn.data.images import ImageSet, Splits, split_validation
from nbsnn.data.registry import DataSet
from nbsnn.errors import MissingDependencyError
from nbsnn.recipe import DataSpec

_NORMALIZATION = (0.305,), (0.376,)  # mean and std
_TEST = 360  # images, a fifth of the set


def load_digits(*, validation: int = 180) -> Splits:
    """Images [N, 1, 8, 8], ten classes; the split is fixed."""
    try:
        from sklearn import datasets
    except ImportError:
        raise MissingDependencyError("scikit-learn", extra="digits", purpose="the data set digits") from None
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = (torch.from_numpy(pixels).view(-1, 1, 8, 8) * (255 / 16)).round().to(torch.uint8)
    full = ImageSet(images, torch.from_numpy(labels).long(), *_NORMALIZATION, tuple(map(str, range(10))))
    order = torch.randperm(len(full), generator=torch.Generator().manual_seed(0))
    return split_validation(full.take(order[_TEST:]), full.take(order[:_TEST]), validation)


def _load(spec: DataSpec, *, size: int, progress: DownloadProgress | None) -> Splits:
    return load_digits(validation=spec.validation)


DATA_SET = DataSet(_load, validation=180, normalization=_NORMALIZATION)
