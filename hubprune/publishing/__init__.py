"""The publishing room: the model card, the manifest, and the one commit that carries them."""
