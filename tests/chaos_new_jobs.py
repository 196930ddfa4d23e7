"""The jobs of a newer deployment: in the chaos runs with a deploy skew, half of the workers lack this module."""

from chaos_jobs import Observed


class Newer(Observed):
    """Known to the new deployment alone."""

    def _perform(self, key: str) -> str:
        with self.said(key):
            self.effect(key)
            return key
