"""Exports and server against programs by others: transformers, PEFT, the gguf package, `datasets`, `prov`, `jsonschema` and
the `openai` client.

    python3 tests/exports_check.py target/debug/flow [VENV]

Trains a small adapter on SmolLM2 and compares what others make of the exports with what flow serves. Makes a virtual
environment under FLOW_HOME (or uses VENV); where the package index cannot be reached it says so and ends with code 0.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from packages import HOME, environment_with

PACKAGES = ["transformers==5.17.0", "peft==0.21.2", "gguf==0.19.0", "datasets", "jsonschema", "openai", "prov"]
BASE = HOME / "models/smollm2-135m-instruct.gguf"
SYSTEM = "You answer in one short sentence."
QUESTION = "What is a cyst?"
TOKENS = 24

PIPELINE = f"""\
name: checked
seed: 5
models:
  base: {{ path: "{BASE}" }}
stages:
  rows: {{ uses: source, with: {{ path: rows.csv }} }}
  train:
    uses: qlora-train
    inputs: {{ train: rows, validation: rows }}
    with:
      model: base
      chat: {{ system: "{SYSTEM}", user: "{{{{ question }}}}", response: answer }}
      lora: {{ r: 8, alpha: 16 }}
      learning_rate: 0.001
      batch_size: 4
      gradient_accumulation: 1
      epochs: 3
      max_length: 96
"""
ROWS = "id,question,answer\n" + "".join(
    f"r{n},What is disease {n}?,Disease {n} is a rare disorder of the {part}.\n" for n, part in enumerate(["skin", "liver", "heart", "lungs"] * 3)
)


def check(what: str, holds: bool, found: object = "") -> None:
    print(f"{'ok' if holds else 'FAILED'}: {what} {found}".rstrip(), flush=True)
    if not holds:
        sys.exit(1)


def records(project: Path) -> None:
    """The data set, the provenance and the head of the run, by the packages that define how they are read."""
    import datasets
    import jsonschema
    import prov.model

    loaded = datasets.load_dataset(str(project / "data"), cache_dir=str(project / "datasets"))
    sizes = {name: (split.num_rows, split.column_names) for name, split in loaded.items()}
    rows = (12, ["id", "question", "answer"])
    check("the data set loads with its splits:", sizes == {"train": rows, "validation": rows}, sizes)

    document = prov.model.ProvDocument.deserialize(project / "prov.json", format="json")
    kinds = [prov.model.ProvEntity, prov.model.ProvActivity, prov.model.ProvDerivation, prov.model.ProvGeneration, prov.model.ProvUsage]
    counts = {kind.__name__: len(list(document.get_records(kind))) for kind in kinds}
    check("the provenance loads:", all(counts.values()), counts)

    schema = json.loads((project / "run.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for head in project.glob("runs/*/run.json"):
        jsonschema.validate(json.loads(head.read_text()), schema)
        check("the head of the run is as its schema says", True)


def compare(project: Path, address: str) -> None:
    """Runs with the packages."""
    records(project)
    import openai
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(2)
    load = lambda folder, **more: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more).eval()
    tokenizer = AutoTokenizer.from_pretrained(project / "merged")
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)

    def logits(model) -> torch.Tensor:
        with torch.no_grad():
            return model(**prompt).logits[0].float()

    def written(model) -> str:
        # Greedy, as asked of the server below.
        with torch.no_grad():
            ids = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False, repetition_penalty=1.0, no_repeat_ngram_size=0)
        return tokenizer.decode(ids[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True)

    base = load(BASE.parent, gguf_file=BASE.name)
    bare, base_text = logits(base), written(base)
    tuned = PeftModel.from_pretrained(base, project / "adapter").eval()
    reference, tuned_text = logits(tuned), written(tuned)
    effect = (reference - bare).abs().mean().item()
    check("the adapter loads in PEFT and changes the logits by", effect > 0.05, f"{effect:.3f} on average")
    for name, model in [
        ("merged folder", load(project / "merged")),
        ("GGUF in F16", load(project, gguf_file="f16.gguf")),
        ("GGUF in Q8_0", load(project, gguf_file="q8_0.gguf")),
    ]:
        apart = (logits(model) - reference).abs().mean().item()
        check(f"{name}: logits of transformers differ from base and adapter by", apart < 0.2 * effect, f"{apart:.4f} on average")

    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    check("models", [model.id for model in client.models.list()] == ["base", "tuned"])
    cold = dict(messages=messages[1:], temperature=0, max_tokens=TOKENS, extra_body={"repetition_penalty": 1, "no_repeat_ngram_size": 0})
    for model, expected in [("base", base_text), ("tuned", tuned_text)]:
        answer = client.chat.completions.create(model=model, **cold)
        text = answer.choices[0].message.content
        # The server gave the system message of the training.
        check(f"{model}: the answer is that of transformers:", text == expected, repr(text))
        stream = client.chat.completions.create(model=model, stream=True, stream_options={"include_usage": True}, **cold)
        chunks = list(stream)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        check(f"{model}: the streamed answer is the same, with usage", streamed == text and chunks[-1].usage == answer.usage)
    try:
        client.chat.completions.create(model="gpt", messages=messages)
        check("an unknown model is refused", False)
    except openai.NotFoundError as error:
        check("an unknown model is refused:", error.code == "model_not_found", error.message)


def main() -> None:
    flow = Path(sys.argv[1]).resolve()
    programs = Path(sys.argv[2]) / "bin" if len(sys.argv) > 2 else environment_with(PACKAGES, "exports-check", torch=True)
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "pipelines").mkdir()
        (project / "pipelines/p.yaml").write_text(PIPELINE)
        (project / "rows.csv").write_text(ROWS)
        run = lambda *arguments: subprocess.run([flow, *arguments], cwd=project, check=True)
        run("run", "pipelines/p.yaml")
        run("export", "--adapter", "adapter", "--merge", "merged", "--gguf", "f16.gguf", "--dataset", "data", "--prov", "prov.json")
        run("export", "--gguf", "q8_0.gguf", "--gguf-format", "q8_0")
        (project / "run.schema.json").write_bytes(subprocess.check_output([flow, "schema", "run"]))
        serve = [flow, "serve", "--port", "0", "--dtype", "f32"]
        with subprocess.Popen(serve, cwd=project, stdout=subprocess.PIPE, text=True) as server:
            try:
                address = server.stdout.readline().strip()
                command = [programs / "python", __file__, "--compare", project, address]
                code = subprocess.run(command).returncode
            finally:
                server.terminate()
        sys.exit(code or server.returncode)


if __name__ == "__main__":
    if sys.argv[1] == "--compare":
        compare(Path(sys.argv[2]), sys.argv[3])
    else:
        main()
