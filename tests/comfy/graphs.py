"""The bundled workflows, and how to make them run on another clip."""

from __future__ import annotations

from pathlib import Path

from tools.client import Prompt, nodes_of

REPOSITORY = Path(__file__).resolve().parent.parent.parent
WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))
NAMES = [path.stem for path in WORKFLOWS]

NODES = {
    "SeTeVSRCompare",
    "SeTeVSRDegradeVideo",
    "SeTeVSRDenoise",
    "SeTeVSRDenoiserModel",
    "SeTeVSREncodeLatents",
    "SeTeVSREncodeSemantics",
    "SeTeVSREstimate",
    "SeTeVSRFrameNoise",
    "SeTeVSRJoinLatents",
    "SeTeVSRLoadDenoiser",
    "SeTeVSRLoadLoRA",
    "SeTeVSRLoadPreset",
    "SeTeVSRLoadSemanticEncoder",
    "SeTeVSRLoadTemporalVAE",
    "SeTeVSRMeasure",
    "SeTeVSRSampleVideo",
    "SeTeVSRSamplingConditioning",
    "SeTeVSRSplitSegments",
    "SeTeVSRStitchSegments",
    "SeTeVSRTemporalDecode",
    "SeTeVSRTemporalProfile",
    "SeTeVSRUpscaleImages",
    "SeTeVSRUpscaleVideo",
}


def use_clip(prompt: Prompt, low_quality: str, reference: str) -> None:
    """Let every node of a graph that loads a video load these files of the input folder instead."""
    for key in nodes_of(prompt, "LoadVideo"):
        prompt[key]["inputs"]["file"] = reference if "reference" in prompt[key]["inputs"]["file"] else low_quality
    for key in nodes_of(prompt, "SeTeVSRSampleVideo"):
        file = reference if prompt[key]["inputs"].get("version") == "reference" else low_quality
        prompt[key] = {"class_type": "LoadVideo", "inputs": {"file": file}}
