"""An advertisement or two that go with what is ordered. Standard library only."""

import json
from pathlib import Path

ADS = json.loads(Path(__file__).with_name("ads.json").read_text())
ADS_MAX = 2


def main(order):
    ordered = {line["product"] for line in order["lines"]}
    ads = []
    for line in order["lines"]:
        for category in line["details"]["categories"]:
            for ad in ADS.get(category, []):
                if ad["product"] not in ordered and ad not in ads:
                    ads.append(ad)
    return {"ads": ads[:ADS_MAX]}
