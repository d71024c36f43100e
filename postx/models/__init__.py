"""What is built of mixers: MLPs, blocks, language models and denoisers; published, kept and quantized ones."""
