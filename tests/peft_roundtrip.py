"""Loads an adapter that flow wrote into PEFT and compares the logits.

usage: python peft_roundtrip.py BASE_MODEL ADAPTER EXPECTED.safetensors

EXPECTED holds `input_ids` [T] and flow's `logits` [T, vocab]. Needs torch, transformers and peft.
"""

import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

base, adapter, expected = sys.argv[1:]
expected = load_file(expected)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
ids = expected["input_ids"][None]
with torch.no_grad():
    without = model(ids).logits[0]
    model = PeftModel.from_pretrained(model, adapter).eval()
    found = model(ids).logits[0]
difference = (found - expected["logits"]).abs().max().item()
change = (found - without).abs().max().item()
print(f"differs by {difference:.2e}; the adapter changes the logits by {change:.2e}")
sys.exit(difference > 1e-4 or change < 1e-2)
