"""OpenAI's state dicts: a live CLIPModel under OpenAI's names, TorchScript archives, other models."""

import warnings

import numpy as np
import pytest
from test_bridge_hugging_face import assert_same_embeddings, make_live

from clipa_eqx.interop import load_openai


torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_model.encoder.layers": "transformer.resblocks",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "vision_model.encoder.layers": "visual.transformer.resblocks",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}


def openai_state(live):
    """A CLIPModel's arrays under OpenAI's names: queries, keys and values in one, projections not transposed."""
    state = {}
    for name, tensor in live.state_dict().items():
        for theirs, openais in NAMES.items():
            name = name.replace(theirs, openais)
        state[name] = tensor
    for name in [name for name in state if ".q_proj." in name]:
        parts = [state.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        state[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    state["visual.proj"] = state.pop("visual_projection.weight").T
    state["text_projection"] = state.pop("text_projection.weight").T
    return state


@pytest.fixture(scope="module")
def live():
    wide = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512}
    narrow = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256}
    return make_live("clip", vision=wide, text=narrow)


def test_state_dict(tmp_path, live):
    state = openai_state(live)
    extra = {"input_resolution": torch.tensor(24), "context_length": torch.tensor(9), "vocab_size": torch.tensor(519)}
    torch.save(state | extra, tmp_path / "state.pt")
    pretrained = load_openai(tmp_path / "state.pt")
    assert (pretrained.preprocess.resize, pretrained.preprocess.interpolation) == ("crop", "bicubic")
    assert pretrained.found_tokenizer is None
    assert_same_embeddings(pretrained.model, live, pretrained.config)
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.pt")
    halved = load_openai(tmp_path / "half.pt").model
    expected = state["token_embedding.weight"].half().float().numpy()
    np.testing.assert_array_equal(halved.text.embedding, expected)


def test_torch_script_archives_say_how_to_convert(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(ValueError, match=r"TorchScript archive.*torch\.jit\.load\('ViT-B-32\.pt'"):
        load_openai(tmp_path / "ViT-B-32.pt")


def test_other_files_are_named(tmp_path, live):
    state = openai_state(live)
    for changed, message in [
        ({"visual.layer1.0.conv1.weight": torch.ones(1)}, "ResNet"),
        ({"visual.conv1.weight": torch.ones(2)}, "no visual.conv1.weight of 4 axes"),
        ({"visual.conv1.weight": None}, "no visual.conv1.weight of 4 axes"),
        ({"visual.positional_embedding": torch.ones(0, 128)}, "image_size"),
    ]:
        kept = {name: tensor for name, tensor in (state | changed).items() if tensor is not None}
        torch.save(kept, tmp_path / "state.pt")
        with pytest.raises(ValueError, match=message):
            load_openai(tmp_path / "state.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.pt"):
        load_openai(tmp_path / "cut.pt")
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load_openai(tmp_path / "none.pt")
