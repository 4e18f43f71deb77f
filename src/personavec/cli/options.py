"""Options of `chat`; their docstrings are the command line's help."""

from dataclasses import dataclass

from personavec.model.sampling import Sampling
from personavec.runs.result import Result
from personavec.runs.rules import Count, Share, Temperature
from personavec.verbs.options import Common, Files, Folder, Steer, call, load_subject


@dataclass(frozen=True)
class ChatConfig(Sampling, Common):
    """Chat in the terminal, steered and watched.

    Examples:
      personavec chat --steer runs/extract-optimistic/optimistic/vector.safetensors:0.1d
      personavec chat --watch runs/extract-optimistic/optimistic/vector.safetensors
      personavec chat --steer optimistic.safetensors:2@15 --steer evil.safetensors:-1@13
      echo "How was your day?" | personavec chat --temperature 0

    More in docs/chat.md.
    """

    steer: Steer = ()
    """Steer every reply; repeat for several vectors. COEF may be a dose (0.2d); LAYER may be all."""
    watch: Files = ()
    """Vector files; every token is coloured by its projection on the first one."""
    adapter: Folder = None
    """PEFT adapter folder to chat with."""
    system: str = "template"
    """System prompt: template (what the chat template does by itself), none, or a text."""
    max_new_tokens: Count = 256
    """Longest reply, in tokens."""
    temperature: Temperature = 0.7
    """Of sampling; 0 is greedy."""
    top_p: Share = 0.95
    """Sample from the smallest set of tokens that holds this probability."""

    def run(self) -> Result:
        """Load what is named and chat."""
        from personavec.cli.chat import chat, read_watched
        from personavec.steering.notation import parse_steering

        steer = [parse_steering(text) for text in self.steer]
        for path in self.watch:  # what is wrong with it is said before the model is loaded
            read_watched(path)
        return call(chat, self, load_subject(self), steer=steer)  # type: ignore[no-any-return]
