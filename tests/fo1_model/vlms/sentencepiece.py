"""A small tokenizer that cuts text as Llama's SentencePiece does: blanks come before words."""

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from fo1_model.vlms.tiny_tokenizer import tiny_words

BLANK = "\u2581"


def llama_tokenizer(*, blanks: str = "always") -> PreTrainedTokenizerFast:
    """Words with a blank are one token, other text is signs; what is neither falls back to bytes.

    As in the published ``tokenizer.json``: the blank is prepended and replaced before the model
    cuts, ``<s>`` comes from the post-processor, and decoding takes the first blank off again.
    Before which texts between special tokens a blank stands is told by ``blanks``: "always", as in
    older files, or "first" alone.
    """
    signs = [chr(code) for code in range(33, 127)]
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -30.0) for byte in range(256)]
    pieces += [(BLANK, -5.0), *((sign, -10.0) for sign in signs)]
    words = dict.fromkeys(f"{BLANK}{word}" for word in tiny_words() if word.isascii())
    pieces += [(word, -6.0) for word in words]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    if blanks == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)]
        )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(BLANK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    special = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
    tokenizer.add_special_tokens([AddedToken(each, normalized=False) for each in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
