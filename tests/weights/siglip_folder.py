"""A tiny SigLIP 2 with random weights in the layout of the published ones."""

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from tests.models import hugging_face

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
WORDS = ("a photo of a disc", "a large wooden box", "tree on the ground", "a photo of the ground")
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")


def make(folder):
    """Writes model.safetensors, config.json and tokenizer.json; returns transformers' model."""
    torch, transformers = hugging_face.libraries()
    tokenizer = tokenizers.Tokenizer(
        models.BPE(fuse_unk=True, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    alphabet = [*"abcdefghijklmnopqrstuvwxyz", "▁"]
    tokenizer.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(
            vocab_size=60,
            special_tokens=list(SPECIAL),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = transformers.SiglipConfig(
        vision_config={**SIZES, "image_size": 32, "patch_size": 8},
        text_config={
            **SIZES,
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": 12,
            "projection_size": 32,
        },
    )
    model = hugging_face.randomize(transformers.SiglipModel(facts), torch)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-7.0)
    model.save_pretrained(folder)
    return model
