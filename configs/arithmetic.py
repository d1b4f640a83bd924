"""Left-to-right arithmetic mod 10 on a laptop: the asynchronous loop in a minute."""

from asympo_jax.config import default_config


def get_config():
    config = default_config()
    return config
