"""Verification: one prompt is drawn by the original model and by all variants, and compared."""

from shared.kinds.verification import VerificationTask
from shared.plan import decode_variants
from worker.kinds.lent import Lent


def run(task: VerificationTask, lent: Lent) -> bytes:
    """Draw and compare."""
    from worker.engine.verification import verify

    # An engine of an earlier task holds memory that the variants need.
    lent.engine_slot.clear()
    variants = decode_variants(lent.blob(task.verification.variants_sha256))
    return verify(task, variants, lent.family, lent.check).to_bytes()
