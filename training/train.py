"""Makes the demo model's weights: `python -m training.train --folder training_run`.

Every stage saves every hundred steps and goes on from there when started again. The weights that are shipped
are written into `worker/families/diffusionkit/demo_model` at the end.
"""

import argparse
from pathlib import Path

from training import decoder, diffusion, vae
from training.export import export
from worker.families.diffusionkit.small_models import demo_folder

SEED = 0


def main() -> None:
    """Train the VAE, its decoder on, text encoders and transformer; write the files that are shipped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--folder", type=Path, default=Path("training_run"), help="checkpoints to resume from"
    )
    parser.add_argument("--output", type=Path, default=demo_folder(), help="where the model is written")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--vae-steps", type=int, default=vae.RECIPE.steps)
    parser.add_argument("--decoder-steps", type=int, default=decoder.RECIPE.steps)
    parser.add_argument("--steps", type=int, default=diffusion.RECIPE.steps)
    options = parser.parse_args()
    autoencoder = vae.train_vae(options.folder / "vae", seed=options.seed, steps=options.vae_steps)
    decoder.train_decoder(
        options.folder / "decoder", autoencoder, seed=options.seed, steps=options.decoder_steps
    )
    painter = diffusion.train_diffusion(
        options.folder / "diffusion", autoencoder, seed=options.seed, steps=options.steps
    )
    export(options.output, autoencoder, painter)


if __name__ == "__main__":
    main()
