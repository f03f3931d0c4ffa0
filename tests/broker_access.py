"""Who may use the MQTT broker of the tests: a plugin of amqtt, which finds it by its name."""

from dataclasses import dataclass

from amqtt.plugins.base import BaseAuthPlugin


class Password(BaseAuthPlugin):
    """Lets in "cam" with "p@ss"."""

    async def authenticate(self, *, session):
        return (session.username, session.password) == ("cam", "p@ss")

    @dataclass
    class Config:
        pass
