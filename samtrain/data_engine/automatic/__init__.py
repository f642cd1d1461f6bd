"""Stage 3 of the data engine: makes fully automatic masks of a folder of images as SA-1B tars, and audits them."""
