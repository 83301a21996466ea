"""Weights in and out."""

from ._arrays import open_arrays as open_arrays
from ._big_vision import (
    load_big_vision as load_big_vision,
    load_big_vision_image as load_big_vision_image,
)
from ._clipa_jax import export_clipa_jax as export_clipa_jax, load_clipa_jax as load_clipa_jax
from ._hugging_face import export_hugging_face as export_hugging_face, load_hugging_face as load_hugging_face
from ._image_tower import (
    ImageTowerStart as ImageTowerStart,
    load_image_tower as load_image_tower,
    read_image_tower as read_image_tower,
)
from ._inputs import (
    ImageReader as ImageReader,
    Picture as Picture,
    Preprocess as Preprocess,
    TextTokenizer as TextTokenizer,
)
from ._load import load_pretrained as load_pretrained
from ._open_clip import export_open_clip as export_open_clip, load_open_clip as load_open_clip
from ._open_clip_config import Numerics as Numerics
from ._openai import load_openai as load_openai
from ._pretrained import (
    move_pretrained as move_pretrained,
    Pretrained as Pretrained,
    save_pretrained as save_pretrained,
)
from ._probe import (
    compare_to_open_clip as compare_to_open_clip,
    compare_to_probe as compare_to_probe,
    Difference as Difference,
    write_probe as write_probe,
)
