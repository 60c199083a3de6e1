"""The folder of one verification: verification/<id>/."""

from pathlib import Path

from producer.folder.kept_folder import KeptFolder
from producer.folder.verification_request import VerificationRequest


class VerificationFolder(KeptFolder[VerificationRequest]):
    """request.json, variants.json, plan.json, shards/, records/, verification.json, winner.json, report.html."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, VerificationRequest)
        self.variants_path = root / "variants.json"
        self.plan_path = root / "plan.json"
        self.verdict_path = root / "verification.json"
        self.winner_path = root / "winner.json"
        self.report_path = root / "report.html"
