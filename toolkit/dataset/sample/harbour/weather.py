"""The weather over the quay: the same for every clip of a day, and what LTDv2's ``meta`` says of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np

from toolkit.dataset.sample.layout import Frame

AIR = {
    "202101": 0.5,
    "202102": 1.0,
    "202103": 4.0,
    "202104": 8.0,
    "202005": 12.5,
    "202006": 16.5,
    "202007": 18.5,
    "202008": 19.0,
    "202009": 14.5,
}
"""Mean temperature of a month on the coast of northern Denmark, degrees Celsius."""

SEA_LAG_DAYS = 35
"""The sea follows the air by about five weeks."""

LATITUDE = 57.05


@dataclass(frozen=True)
class Weather:
    """Weather at a moment.

    Attributes:
        air: temperature, degrees Celsius.
        sea: temperature of the water, degrees Celsius.
        sun: what reaches the ground now, 0 to 1.
        stored: sun that the ground has taken up over the last hours, 0 to 1.
        cloud: cover, 0 to 1; under a clear sky surfaces cool below the air.
        rain: 0 to 1.
        wind: metres a second.
    """

    air: float
    sea: float
    sun: float
    stored: float
    cloud: float
    rain: float
    wind: float


def weather_at(frame: Frame, seed: int) -> Weather:
    """The weather at a frame, by its month, day and hour."""
    month, day = int(frame.month[4:]), int(frame.date[8:10])
    hour = frame.hour + int(frame.date[14:16]) / 60
    rng = np.random.default_rng([seed, 2, int(frame.month), day])
    cloud = float(rng.beta(1.3, 1.0))
    shower = float(rng.uniform(0, 24)), float(rng.uniform(2, 9))
    rainy = cloud > 0.55 and rng.random() < 0.6
    fallen = rainy and (hour - shower[0]) % 24 < shower[1]
    rain = float(rng.uniform(0.3, 1.0)) if fallen else 0.0
    warmer, wind = float(rng.normal(0, 2.5)), float(rng.gamma(3.0, 1.6))
    cover = max(cloud, 0.85 if rain else 0.0)
    sun = _height_of_the_sun(month, day, hour) * (1 - 0.8 * cover)
    before = [_height_of_the_sun(month, day, hour - h) for h in (0.5, 1.5, 2.5, 3.5)]
    stored = float(np.mean(before)) * (1 - 0.8 * cover)
    swing = 1.0 + 5.0 * _height_of_the_sun(month, day, 13.0) * (1 - 0.7 * cloud)
    air = AIR[frame.month] + warmer + swing * float(np.cos((hour - 15) / 12 * np.pi))
    day_of_year = date(2021, month, day).timetuple().tm_yday - SEA_LAG_DAYS
    sea = 9.0 - 8.0 * float(np.cos((day_of_year - 15) / 365 * 2 * np.pi))
    return Weather(air, sea, sun, stored, cover, rain, wind)


def _height_of_the_sun(month: int, day: int, hour: float) -> float:
    """Sine of the sun's elevation, 0 at night; declination by Cooper's formula (Solar Energy 12, 1969)."""
    day_of_year = date(2021, month, day).timetuple().tm_yday
    declination = np.radians(23.45) * np.sin(2 * np.pi * (284 + day_of_year) / 365)
    latitude, angle = np.radians(LATITUDE), (hour - 13) / 12 * np.pi
    high = np.sin(latitude) * np.sin(declination)
    return max(0.0, float(high + np.cos(latitude) * np.cos(declination) * np.cos(angle)))


def meta(frame: Frame, seed: int) -> dict[str, float]:
    """The weather at a frame, by LTDv2's names."""
    now = weather_at(frame, seed)
    humidity = float(np.clip(70 + 20 * now.cloud + 10 * now.rain - 35 * now.sun, 25, 100))
    return {
        "Temperature": round(now.air, 1),
        "Humidity": round(humidity, 1),
        "Precipitation": round(1.5 * now.rain, 1),
        "Dew Point": round(now.air - (100 - humidity) / 5, 1),
        "Wind Direction": (int(frame.month) * 37 + int(frame.date[8:10]) * 53) % 360,
        "Wind Speed": round(now.wind, 1),
        "Sun Radiation Intensity": round(950 * now.sun, 1),
        "Min of sunshine latest 10 min": round(10 * (1 - now.cloud) if now.sun > 0 else 0.0, 1),
    }
