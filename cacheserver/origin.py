"""Where misses come from: MLflow's tracking server and its artifact stores. The one room that imports mlflow.

Law of this file: what the origin says is not believed. Every name passes `names`, every size is compared, every
question ends within `unreachable_after` from its turn, for which it is waited as long; errors leave here as errors of
ours, without a secret in them.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import urlsplit

# Before mlflow is imported: it reads these once. The daemon reports nothing to anybody.
os.environ.update(
    ARTIFACTCACHE="off",  # the daemon asks no daemon
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="true",
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
    MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD="false",
)

import mlflow
import requests
from mlflow.store.artifact import azure_blob_artifact_repo, gcs_artifact_repo, s3_artifact_repo
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.tracking import MlflowClient
from mlflow.tracking.request_auth.registry import fetch_auth
from mlflow.tracking.request_header.registry import resolve_request_headers
from mlflow.utils.credentials import get_default_host_creds
from requests.utils import get_auth_from_url, get_netrc_auth

from artifactcache.errors import CacheError, Corrupted, InvalidRequest, OriginUnavailable
from cacheserver import names, roots
from cacheserver.azure import AzureBuckets
from cacheserver.bounded import Bounded
from cacheserver.breaker import Breaker
from cacheserver.caller import API, AsCaller, is_of_api
from cacheserver.catalogue import Catalogue
from cacheserver.credentials import Credentials
from cacheserver.gcs import GcsBuckets
from cacheserver.headers import Accesses, basic
from cacheserver.http import Access, ElsewhereError, Http, StatusError
from cacheserver.local import LOCAL_SCHEMES, LocalFiles
from cacheserver.looking import Looked, look
from cacheserver.objects import ObjectFiles, Parts
from cacheserver.outcomes import Outcome, Outcomes
from cacheserver.proxied import ProxiedFiles
from cacheserver.questions import Questions
from cacheserver.refusals import translated, without_credentials
from cacheserver.repository import RepositoryFiles, Transfers
from cacheserver.resolving import Resolving
from cacheserver.retention import Facts
from cacheserver.s3 import S3Buckets
from cacheserver.shares import Shares
from cacheserver.sources import Place, Proof, Sources
from cacheserver.staging import Sink
from cacheserver.uris import Artifact, Kind
from cacheserver.words import File, Listing, Location, Resolved, join

# Stages are deprecated; as long as MLflow has them, users have URIs with them.
warnings.filterwarnings("ignore", category=FutureWarning, message=".*get_latest_versions.*")

IDENTIFIERS_MAX = 16  # entity tags, or logged models of a run, asked for at a time; for one user half of them
LOOK_SECONDS_MAX = 2.0  # how long a look at a server that has not answered may take
RETRIES = 2
REPOSITORIES_MAX = 256  # of MLflow's, kept: some hold connections
DOWNLOAD_ATTEMPTS = 2

T = TypeVar("T")


_ENDPOINT = "/mlflow-artifacts/artifacts"  # of every http: artifact URI
_NO_STORE = "Could not find a registered artifact repository"  # MLflow has no class of error for it

_OF_TRACKING_SERVER = frozenset({"http", "https", "mlflow-artifacts"})
# Where these list no size, the file is empty: MLflow's JSON leaves out zeros.
_SIZED = frozenset({"", "file", "http", "https", "mlflow-artifacts", "s3", "gs", "wasbs", "abfss"})


class MlflowOrigin:
    """One tracking server, and the artifact stores it names.

    Args:
        tracking_uri: as MLflow takes it; credentials come from MLflow's own environment variables.
        unreachable_after_seconds: how long one answer may take.
        forbidden: a folder that no `file:` artifact may lie in: the store itself.
        world_only: whether `file:` artifacts must be readable by every user of the host: a daemon that serves others
            must not read for them what they could not read themselves.
        ticks: seconds of a clock that never jumps.
        clock: seconds since the epoch, as the times of local files are told.
        local_roots: folders in which that does not matter for what the tracking server names.
    """

    def __init__(
        self,
        tracking_uri: str,
        unreachable_after_seconds: float,
        *,
        forbidden: str,
        world_only: bool,
        ticks: Callable[[], float],
        clock: Callable[[], float],
        local_roots: Iterable[str] = (),
    ) -> None:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(unreachable_after_seconds)))
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = str(RETRIES)
        os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"] = "1"
        mlflow.set_tracking_uri(tracking_uri)
        self._tracking_uri = mlflow.get_tracking_uri()
        self._client = MlflowClient(self._tracking_uri)
        self._patience = unreachable_after_seconds
        self.is_own = True  # asked with the daemon's own credentials
        self.owner: int | None = None  # for whom: a user's ID, or None for the daemon itself
        self._forbidden = os.path.realpath(forbidden)
        self._world_only, self._clock = world_only, clock
        self._local_roots = tuple((os.path.normpath(folder), os.path.realpath(folder)) for folder in local_roots)
        self._repositories = Bounded[str, Any](REPOSITORIES_MAX)
        self._questions = Questions(unreachable_after_seconds)
        self._http, self._looker = Http(ticks), Http(ticks)
        here = self._tracking_uri
        self._accesses = Accesses(partial(_access, here=here), partial(is_of_api, tracking_uri=here), ticks)
        self._breaker = Breaker(self.name, self._answers, ticks)
        self._catalogue = Catalogue(self._client, self.name)
        searches = roots.scheme(here) not in LOCAL_SCHEMES
        self._outcomes = Outcomes(self._client, self._question, self._breaker.check, searches=searches)
        self._identifiers = Shares(IDENTIFIERS_MAX, "identify")
        self._parts, self._transfers = Parts(), Transfers(unreachable_after_seconds)
        forget, forget_s3 = self._repositories.clear, s3_artifact_repo._cached_get_s3_client.cache_clear
        self._buckets = {  # for MLflow's own classes only: of a plugin's nothing is known
            s3_artifact_repo.S3ArtifactRepository: S3Buckets(unreachable_after_seconds, forget_s3),
            gcs_artifact_repo.GCSArtifactRepository: GcsBuckets(unreachable_after_seconds, forget),
            azure_blob_artifact_repo.AzureBlobArtifactRepository: AzureBuckets(unreachable_after_seconds, forget),
        }

    @property
    def name(self) -> str:
        """The tracking URI, without credentials."""
        return without_credentials(self._tracking_uri)

    def is_away(self) -> bool:
        """Whether the tracking server is known not to answer."""
        return self._breaker.is_open()

    def close(self) -> None:
        """Asks nothing any more."""
        self._breaker.close()
        for each in (self._identifiers, self._questions, self._parts, self._transfers):
            each.close()

    def guards(self, artifact: Artifact) -> bool:
        """Whether the artifact has to be looked at each time: a file of this host, named by a client of many users."""
        return self._world_only and artifact.kind is Kind.BARE and roots.scheme(artifact.name) in LOCAL_SCHEMES

    # -- callers ----------------------------------------------------------------------------------------------------

    def asked_by(self, owner: int | None) -> MlflowOrigin:
        """This origin, asked for a user: nobody's questions and downloads take the threads that others need."""
        other = copy.copy(self)
        other.owner = owner
        return other

    def as_caller(self, headers: Mapping[str, str]) -> MlflowOrigin:
        """This origin as somebody sees it who sends these headers to the tracking server: none of what the daemon's
        own account is shown. Artifact stores are asked with the daemon's keys all the same."""
        other = copy.copy(self)
        here = self._tracking_uri

        def access(url: str) -> Access:
            own = headers if is_of_api(url, here) else {}
            return Access(own, get_default_host_creds(url).verify, None)

        other._client = AsCaller(self.name, self._http, access, self._patience)
        other._accesses = SimpleNamespace(of=access, anew=access)  # type: ignore[assignment]
        other.is_own = False
        return other

    def prove(self, artifact: Artifact, credentials: Credentials) -> Proof:
        """Looks whether a caller is shown the source of an artifact (`Sources.prove`)."""
        return self.as_caller(credentials.headers)._sources().prove(artifact)

    def place(self, artifact: Artifact) -> Place:
        """Where an artifact's bytes lie, as this origin is shown it (`Sources.place`)."""
        return self._sources().place(artifact)

    def _sources(self) -> Sources:
        return Sources(self._client, self._question, self.name)

    # -- versions ---------------------------------------------------------------------------------------------------

    def version_of(self, artifact: Artifact, *, patience: float | None = None) -> tuple[Artifact, str]:
        """Which version a moving name stands for now, and when that was made (`Resolving.version_of`)."""
        return self._resolving().version_of(artifact, patience)

    def resolve(self, artifact: Artifact, *, patience: float | None = None) -> Resolved:
        """Where the bytes of a version are (`Resolving.resolve`)."""
        return self._resolving().resolve(artifact, patience)

    def _resolving(self) -> Resolving:
        return Resolving(self._client, self._question, partial(self._identifiers.each, self.owner))

    def describe(self, versions: Iterable[str], needs: frozenset[str]) -> dict[str, Facts]:
        """What retention rules need to know of versions (`Catalogue.describe`)."""
        return self._catalogue.describe(versions, needs, self._question)

    def outcomes(self, asked: Iterable[tuple[str, str]]) -> dict[str, Outcome]:
        """What has become of runs and logged models (`Outcomes.of`)."""
        return self._outcomes.of(asked)

    # -- bytes ------------------------------------------------------------------------------------------------------

    def listing(self, location: Location, *, named_by_client: bool, patience: float | None = None) -> Listing:
        """All files at a location. Raises NotFound where there is nothing.

        Args:
            named_by_client: whether a client named the location itself, instead of the tracking server.
            patience: seconds that one answer may take, where that is not `unreachable_after`.
        """
        files = self._files(location.root, named_by_client, patience)
        try:
            if isinstance(files, LocalFiles):
                found = self._questions.ask(
                    location.uri, lambda: files.listing(location), is_local=True, owner=self.owner
                )
            else:
                found = files.listing(location)
            return found._replace(transport=files.transport)
        except Exception as error:  # noqa: BLE001 - whatever it is, it leaves here as one of ours
            ours = translated(error, location.uri)
            raise self._noted(ours) if isinstance(files, ProxiedFiles) else ours from None

    def fill(self, location: Location, file: File, sink: Sink, *, named_by_client: bool) -> None:
        """Downloads one file of a listing. Raises Corrupted where its size is not the listed one."""
        uri = names.show(join(location.root, file.remote))
        files = self._files(location.root, named_by_client)
        for attempt in range(DOWNLOAD_ATTEMPTS):
            try:
                files.fill(file, sink)
                sink.check()
                return
            except Exception as error:  # noqa: BLE001 - MLflow and its clients raise anything
                ours = translated(error, uri)
                if isinstance(files, ProxiedFiles):
                    self._noted(ours)
                if attempt + 1 == DOWNLOAD_ATTEMPTS or not isinstance(ours, (Corrupted, OriginUnavailable)):
                    raise ours from None
                if not (isinstance(ours, OriginUnavailable) and sink.etag):  # else it goes on where it was broken off
                    sink.restart()

    def identified(self, location: Location, files: list[File], *, named_by_client: bool) -> dict[bytes, File]:
        """Those of some listed files whose entity tags have to be asked for one by one, with them, by path."""
        store = self._files(location.root, named_by_client)
        if not isinstance(store, ProxiedFiles) or not files:
            return {}
        try:
            found = self._identifiers.each(self.owner, store.identify, files)
            return {file.path: file._replace(etag=etag) for file, etag in zip(files, found, strict=True)}
        except Exception as error:  # noqa: BLE001 - whatever it is, it leaves here as one of ours
            raise self._noted(translated(error, location.uri)) from None

    def _files(
        self, root: str, named_by_client: bool, patience: float | None = None
    ) -> LocalFiles | ProxiedFiles | ObjectFiles | RepositoryFiles:
        """What can list and download the files below a root."""
        if roots.scheme(root) in LOCAL_SCHEMES:
            return self._local(root, named_by_client)
        repository = self._repository(root, named_by_client=named_by_client)
        if isinstance(repository, HttpArtifactRepository):
            self._breaker.check()
            return ProxiedFiles(repository.artifact_uri, self._http, self._accesses, patience or self._patience)
        store = roots.store(root)
        ask = partial(self._questions.ask, of_answer=True, store=store, owner=self.owner, patience=patience)
        others = RepositoryFiles(repository, roots.scheme(root) in _SIZED, ask, self._transfers, store, self.owner)
        if buckets := self._buckets.get(type(repository)):
            return ObjectFiles(root, partial(self._made, root), buckets, self._parts, ask, others)
        return others

    def _repository(self, root: str, *, named_by_client: bool = False) -> Any:
        """The repository of a root. Raises InvalidRequest where the daemon's credentials would go elsewhere."""
        shown = names.show(without_credentials(root))
        if named_by_client and roots.scheme(root) in _OF_TRACKING_SERVER:
            there, here = roots.server(root), roots.server(self._tracking_uri)
            if there not in ("", here) or (not there and roots.scheme(root) != "mlflow-artifacts"):
                raise InvalidRequest(f"{shown} is on another server than the tracking server of this daemon.")
            own = f"{urlsplit(self._tracking_uri).path.rstrip('/')}{API.rstrip('/')}{_ENDPOINT}"
            if roots.scheme(root) != "mlflow-artifacts" and not f"{urlsplit(root).path}/".startswith(f"{own}/"):
                raise InvalidRequest(
                    f"{shown} is no artifact URI of this daemon's tracking server: write mlflow-artifacts:/<path>."
                )
        if roots.scheme(root) in _OF_TRACKING_SERVER or self._repositories.get(root):
            return self._made(root)
        # Some ask for credentials, or connect, when they are made.
        return self._questions.ask(shown, lambda: self._made(root), store=roots.store(root), owner=self.owner)

    def _made(self, root: str) -> Any:
        """MLflow's own repository of a root, kept."""
        shown, found = names.show(without_credentials(root)), self._repositories.get(root)
        if found:
            return found
        try:
            found = get_artifact_repository(root, tracking_uri=self._tracking_uri)
            self._repositories.put(root, found)
            return found
        except Exception as error:  # noqa: BLE001 - the clients of the object stores raise anything
            if str(error).startswith(_NO_STORE):
                raise InvalidRequest(
                    f"MLflow knows no artifact store for {shown}: write a scheme that it knows, such as s3: or"
                    " mlflow-artifacts:, or install its plugin where the daemon runs."
                ) from None
            raise translated(error, shown) from None

    def _local(self, root: str, named_by_client: bool) -> LocalFiles:
        return LocalFiles(
            roots.local_path(root),
            forbidden=self._forbidden,
            world_only=self._world_only,
            clock=self._clock,
            exempt=() if named_by_client else self._local_roots,
        )

    def _question(self, what: str, question: Callable[[], T], *, patience: float | None = None) -> T:
        """One answer of the tracking server. Raises errors of ours only."""
        self._breaker.check()
        try:
            return self._questions.ask(what, question, of_answer=True, owner=self.owner, patience=patience)
        except CacheError as error:
            raise self._noted(error) from None

    def _noted(self, error: CacheError) -> CacheError:
        """An error of the tracking server's, which may mean that it is away."""
        if isinstance(error, OriginUnavailable):
            self._breaker.failed()
        return error

    def look(self, path: str, headers: Mapping[str, str] | None, patience: float, owner: int) -> Looked:
        """What the tracking server says to a question of no consequence; None: with the daemon's own credentials."""
        whose = self._accesses if headers is None else self.as_caller(headers)._accesses
        base = self._tracking_uri.rstrip("/")
        ask = partial(self._questions.ask, self.name, owner=owner, patience=patience)
        return look(self._looker, base, path, whose.anew, patience, ask)

    def _answers(self) -> bool:
        """Whether the tracking server answers at all, with whatever it likes."""
        if roots.scheme(self._tracking_uri) not in ("http", "https"):
            return True
        url = f"{self._tracking_uri.rstrip('/')}/health"
        try:
            own = f"{self._tracking_uri.rstrip('/')}{API}"  # by whose certificates the rest of it is reached as well
            access = _access(own, here=self._tracking_uri)._replace(headers={})
            with self._looker.get(url, access, min(self._patience, LOOK_SECONDS_MAX)):
                return True
        except (StatusError, ElsewhereError):
            return True
        except Exception:  # noqa: BLE001 - what stands in the way stands in the way of every question
            return False


def _access(url: str, *, here: str) -> Access:
    """What MLflow's own client would send beside a URL: credentials and certificates of the environment.

    The daemon's credentials are for its tracking server: others, which whoever may create runs can name as their root,
    get a login only where ~/.netrc or the URL itself has one for them. ~/.netrc knows no ports: what it has for the
    tracking server's host is the tracking server's, and for nobody else who listens there.
    """
    if not is_of_api(url, here):
        of_netrc = get_netrc_auth(url) if urlsplit(url).hostname != urlsplit(here).hostname else None
        login = of_netrc or get_auth_from_url(url)
        return Access({"Authorization": basic(login)} if all(login) else {}, get_default_host_creds(url).verify, None)
    creds, headers = get_default_host_creds(url), dict(resolve_request_headers())
    login = get_netrc_auth(url) or get_auth_from_url(url)  # requests puts both before what MLflow gives it
    if not any(login):
        login = (creds.username or "", creds.password or "")
    if all(login):
        headers["Authorization"] = basic(login)
    elif creds.token:
        headers["Authorization"] = f"Bearer {creds.token}"
    is_signed = bool(creds.aws_sigv4 or creds.auth)
    if is_signed:
        request = requests.Request("GET", url, headers=headers, auth=_signer(creds)).prepare()
        headers = dict(request.headers)
    return Access(headers, creds.verify, creds.client_cert_path, is_signed)


def _signer(creds: Any) -> Any:
    """What signs a request of requests: an authentication plugin of MLflow's, or AWS's way."""
    if creds.aws_sigv4:
        from requests_auth_aws_sigv4 import AWSSigV4  # type: ignore[import-not-found] # only where it is needed

        return AWSSigV4("execute-api")
    return fetch_auth(creds.auth)
