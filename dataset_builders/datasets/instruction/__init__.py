"""Datasets of conversations: descriptions, questions and answers, about regions or whole images.

- `visual_genome`: Visual Genome, descriptions of regions.
- `osprey`: Osprey-724K, conversations about numbered regions of COCO images.
- `mdvp`: MDVP-Data, conversations about boxes drawn into an image.
- `vcr`: VCR, questions about the people of a film still, and why.
- `visual_cot`: Visual-CoT, questions with the region that helps to answer them.
- `tallyqa`: TallyQA, counting questions.
- `sharegpt4v`: ShareGPT4V, long captions, built three ways.
- `llava`: LLaVA's mix665k, conversations about images and about none.
- `cauldron`: The Cauldron, fifty datasets in parquet.
- `cogvlm`: CogVLM-SFT-311K, an image and a JSON file each.
"""
