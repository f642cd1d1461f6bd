"""Data: SA-1B's shards in, batches out; the same form is written back."""

from samtrain.data.arrays import ArrayDataConfig
from samtrain.data.datasets import EndlessBatchSampler, RemoteSamDataset, SamDataset, Source, collate
from samtrain.data.decode import decode_image
from samtrain.data.image_set import DataConfig, ImageSet
from samtrain.data.preflight import check_samples
from samtrain.data.shards import Record, ShardIndex, ShardWriter, expand_urls, index_tar, is_remote, read_record, safe_key
from samtrain.data.transforms import LargeScaleJitter, NativeCrop, ResizeLongestSide, Sample
from samtrain.files import digest

__all__ = [
    "ArrayDataConfig",
    "DataConfig",
    "EndlessBatchSampler",
    "ImageSet",
    "LargeScaleJitter",
    "NativeCrop",
    "Record",
    "RemoteSamDataset",
    "ResizeLongestSide",
    "SamDataset",
    "Sample",
    "ShardIndex",
    "ShardWriter",
    "Source",
    "check_samples",
    "collate",
    "decode_image",
    "digest",
    "expand_urls",
    "index_tar",
    "is_remote",
    "read_record",
    "safe_key",
]
