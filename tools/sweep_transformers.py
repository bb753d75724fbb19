"""Each text and image family of transformers, tiny, with random weights: load, one step, save, load, predict.

    .venv/bin/python tools/sweep_transformers.py [--every K] [--part 1/4] [--export] [--out transformers.jsonl]

A family is a model_type with a class for sequences or pictures, or an encoder without a head. Its config is
the library's own with small numbers; what is refused is refused in regraft's words.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import sweeping
from sweeping import Outcome

LIMIT_S = 240
MAX_PARAMETERS = 120_000_000
WORDS = 64
TEXTS = ("w5 w6 w7 w8 w9 w10", "w11 w12", "w13 w14 w15", "w16")
SMALL: dict[str, Any] = {
    "vocab_size": WORDS,
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "emb_dim",
            "dim",
            "embedding_size",
            "embed_dim",
            "kv_channels",
            "d_embed",
            "hidden_dim_size",
            "rotary_dim_size",
            "projection_dim",
            "project_dim",
            "embedding_dim",
            "word_embed_proj_dim",
            "input_embedding_size",
            "output_embedding_size",
            "true_hidden_size",
            "intra_bottleneck_size",
        ),
        32,
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "d_ff",
            "d_inner",
            "hidden_dim",
            "ffn_dim",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "n_inner",
            "dff",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "feed_forward_size",
            "decoder_intermediate_size",
            "decoder_hidden_size",
            "ffn_hidden_size",
            "moe_shared_expert_intermediate_size",
            "linear_value_dim",
        ),
        32,
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "encoder_layers",
            "decoder_layers",
            "num_decoder_layers",
            "decoder_num_hidden_layers",
        ),
        2,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "num_key_value_heads",
            "decoder_num_attention_heads",
            "num_kv_heads",
            "mamba_n_heads",
        ),
        2,
    ),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "qk_nope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 128),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "num_experts_per_token"), 2),
    "image_size": 64,
    **dict.fromkeys(("pad_token_id", "pad_index"), 0),
    **dict.fromkeys(
        (
            "bos_token_id",
            "eos_token_id",
            "cls_token_id",
            "sep_token_id",
            "mask_token_id",
            "bos_index",
            "eos_index",
            "unk_index",
            "mask_index",
            "decoder_start_token_id",
            "forced_eos_token_id",
        ),
        1,
    ),
}
UNLIKE: dict[str, dict[str, Any]] = {
    "efficientnet": {"hidden_dim": 2560},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"hidden_size": 96, "coordinate_size": 16, "shape_size": 16, "visual_embed": False},
    "lilt": {"hidden_size": 48},
    "luke": {"entity_vocab_size": 32, "entity_emb_size": 16},
    "reformer": {"axial_pos_embds": False},
    "swin": {"embed_dim": 48, "image_size": 224},
    "swinv2": {"embed_dim": 48},
    "swin2sr": {"embed_dim": 48, "num_heads": [2] * 6},
    "donut-swin": {"embed_dim": 48, "image_size": 224},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 6},
    "deepseek_v2": {"topk_method": "greedy", "n_group": None, "topk_group": None},
}


def families() -> list[tuple[str, str]]:
    """Return (family, class): every headed class, and encoders that have no headed one."""
    from transformers.models.auto import modeling_auto as auto

    found: dict[str, str] = {}
    for names in (
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    ):
        for kind, name in names.items():
            found.setdefault(kind, name if isinstance(name, str) else name[0])
    for names in (auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES, auto.MODEL_FOR_IMAGE_MAPPING_NAMES):
        for kind, name in names.items():
            if kind not in found:
                found[kind] = name
            elif name.endswith("EncoderModel"):
                found[f"{kind} encoder"] = name
    more = {
        "longt5": "LongT5EncoderModel",
        "switch_transformers": "SwitchTransformersEncoderModel",
        "dpr": "DPRQuestionEncoder",
        "dpr context": "DPRContextEncoder",
        "clip texts": "CLIPTextModelWithProjection",
        "clip pictures": "CLIPVisionModelWithProjection",
        "clip_vision_model": "CLIPVisionModel",
        "siglip_text_model": "SiglipTextModel",
        "altclip_text_model": "AltCLIPTextModel",
        "clip both": "CLIPModel",
        "siglip both": "SiglipModel",
        "gpt2 plain": "GPT2LMHeadModel",
        "llama plain": "LlamaForCausalLM",
    }
    return sorted({**found, **more}.items())


def small(values: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a configuration that are to be small, of its parts too."""
    found = {k: SMALL[k] for k in values if k in SMALL and type(values[k]) is int}
    absent = ("vocab_size", "head_dim", "num_key_value_heads", "pad_token_id")
    found |= {k: SMALL[k] for k in absent if k in values and values[k] is None}
    for part in ("text_config", "vision_config"):
        if isinstance(values.get(part), dict):
            kind = values[part].get("model_type", "")
            found[part] = {**small(values[part]), **UNLIKE.get(kind, {})}
    return found


def model_of(kind: str, name: str) -> Any:
    """Return a tiny model of a class, with random weights."""
    import torch
    import transformers

    cls = getattr(transformers, name)
    family = cls.config_class
    numbers = small(family().to_dict()) | UNLIKE.get(kind.partition(" ")[0], {})
    torch.manual_seed(0)
    config = family(**numbers)
    with torch.device("meta"):
        count = sum(p.numel() for p in cls._from_config(config).parameters())
    if count > MAX_PARAMETERS:
        raise OverflowError(f"{count / 1e6:.0f} M parameters with the sweep's numbers")
    return cls._from_config(config).float().eval()


def write(net: Any, kind: str, folder: Path) -> None:
    """Write the model with a tokenizer of words, or with how pictures are prepared."""
    net.save_pretrained(folder)
    if net.main_input_name == "pixel_values" or kind.endswith(" both"):
        side = side_of(net.config)
        settings = {"size": {"height": side, "width": side}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(3, WORDS))]
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)


def side_of(config: Any) -> int:
    side = getattr(getattr(config, "vision_config", None) or config, "image_size", 64)
    side = side[0] if isinstance(side, list | tuple) else side
    return side if isinstance(side, int) else 64


def attempt(family: str, name: str, export: bool) -> Outcome:
    """Return how far a family gets. What was loaded again and differs counts as a failure."""
    outcome = Outcome(family, name)
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        try:
            net = model_of(family, name)
            write(net, family, Path(folder))
        except Exception as error:
            outcome.skipped = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            return outcome
        with sweeping.recorded(outcome, folder):
            stages(outcome, Path(folder), export)
    return outcome


def stages(outcome: Outcome, folder: Path, export: bool) -> None:
    import torch

    from regraft.data.preprocessing import build
    from regraft.data.types import ImageSpec
    from regraft.model.grafting import graft
    from regraft.model.types import SourceOptions
    from regraft.pipeline.finish import save_model
    from regraft.pipeline.predictor import load
    from regraft.runs.folder import RunFolder
    from regraft.sources import load_source
    from regraft.tasks.classification import Classification

    source = load_source(f"transformers:{folder}", SourceOptions(offline=True))
    outcome.more = {
        "pooling": source.recipe["pooling"],
        "blocks": len(source.blocks),
        "head": source.recipe["head_name"],
    }
    outcome.passed.append("load")
    if isinstance(source.preprocess, ImageSpec):
        inputs: Any = torch.randn(4, source.preprocess.channels, *source.preprocess.size)
    else:
        texts = build(source.preprocess)
        if not all(row["input_ids"] for row in texts.many([(t,) for t in TEXTS])):  # type: ignore[union-attr]
            outcome.skipped = "the library's class of tokenizer for this family has none of the words"
            return
        inputs = texts.collate(texts.many([(t,) for t in TEXTS]))  # type: ignore[union-attr]
    target = graft(source, 2)
    optimizer = torch.optim.SGD(target.model.parameters(), lr=1e-4)
    y = torch.tensor([0, 1, 0, 1])
    torch.nn.functional.cross_entropy(target.model.train()(inputs), y).backward()
    if not any(p.grad is not None for n, p in target.model.named_parameters() if n.startswith("backbone.")):
        raise ValueError("no weight of the backbone has a gradient")
    optimizer.step()
    outcome.passed.append("fit")
    task = Classification().make([("a",), ("b",)], ("label",))
    with RunFolder(folder / "run") as run:
        save_model(run, target, task)
    outcome.passed.append("save")
    with torch.no_grad():
        expected = target.model.eval()(inputs)
        found = load(folder / "run").model(inputs)
    if not torch.allclose(expected, found, rtol=1e-5, atol=1e-7):
        apart = float((expected - found).abs().max())
        raise ValueError(f"the loaded model differs from the saved one by {apart}")
    if not bool(torch.isfinite(found).all()):
        raise ValueError("its outputs are not finite")
    outcome.passed.append("predict")
    if export:
        program = torch.export.export(target.model, (inputs,), strict=False)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(inputs), expected, rtol=1e-3, atol=1e-4)
        outcome.passed.append("export")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--every", type=int, default=1, help="take each K-th family only")
    parser.add_argument("--only", nargs="*", help="these families")
    sweeping.add_part(parser)
    parser.add_argument("--export", action="store_true", help="also torch.export, and run it")
    parser.add_argument("--out", type=Path, default=Path("transformers.jsonl"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        sweeping.work(lambda family, name: attempt(family, name, options.export))
        return 0
    pairs = families()
    todo = [f for f in pairs if not options.only or f[0] in options.only][:: options.every]
    todo = sweeping.part(todo, options.part)
    outcomes = sweeping.run(Path(__file__), todo, ["--export"] * options.export, LIMIT_S, options.out)
    return 0 if all(o.whole or o.refused or o.skipped for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
