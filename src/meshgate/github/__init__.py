"""Pull requests on GitHub: which one a workflow is about, and one comment on it that is kept up to date.

* `workflow`: what a workflow's environment says, and what it wants to be told;
* `api`: GitHub's REST and GraphQL, with what goes wrong there named;
* `comment`: one comment, found again by its first line and its author;
* `siblings`: checkouts of the other repositories of a mesh.

Only the standard library is used, and what a token is stays in here.
"""

from meshgate.github.api import Api
from meshgate.github.comment import LONGEST, Posted, put
from meshgate.github.workflow import PullRequest, Workflow

__all__ = ["LONGEST", "Api", "Posted", "PullRequest", "Workflow", "put"]
