from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PingRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PingReply(_message.Message):
    __slots__ = ("version", "pid")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    version: str
    pid: int
    def __init__(self, version: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...

class WhoAmIRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WhoAmIReply(_message.Message):
    __slots__ = ("uid", "user", "gids", "pid", "tracking_uri", "access_check", "roles", "groups")
    UID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    GIDS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    TRACKING_URI_FIELD_NUMBER: _ClassVar[int]
    ACCESS_CHECK_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    uid: int
    user: str
    gids: _containers.RepeatedScalarFieldContainer[int]
    pid: int
    tracking_uri: str
    access_check: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    groups: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, uid: _Optional[int] = ..., user: _Optional[str] = ..., gids: _Optional[_Iterable[int]] = ..., pid: _Optional[int] = ..., tracking_uri: _Optional[str] = ..., access_check: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ..., groups: _Optional[_Iterable[str]] = ...) -> None: ...

class ArtifactSelection(_message.Message):
    __slots__ = ("uri", "run_id", "artifact_path", "include", "exclude")
    URI_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_PATH_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    uri: str
    run_id: str
    artifact_path: str
    include: _containers.RepeatedScalarFieldContainer[str]
    exclude: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, uri: _Optional[str] = ..., run_id: _Optional[str] = ..., artifact_path: _Optional[str] = ..., include: _Optional[_Iterable[str]] = ..., exclude: _Optional[_Iterable[str]] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("artifact", "refresh", "view")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    REFRESH_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    artifact: ArtifactSelection
    refresh: bool
    view: bool
    def __init__(self, artifact: _Optional[_Union[ArtifactSelection, _Mapping]] = ..., refresh: bool = ..., view: bool = ...) -> None: ...

class FetchEvent(_message.Message):
    __slots__ = ("progress", "result")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    result: FetchResult
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., result: _Optional[_Union[FetchResult, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("bytes_done", "bytes_total", "files_done", "files_total")
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    FILES_DONE_FIELD_NUMBER: _ClassVar[int]
    FILES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int
    def __init__(self, bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., files_done: _Optional[int] = ..., files_total: _Optional[int] = ...) -> None: ...

class FetchResult(_message.Message):
    __slots__ = ("version", "digest", "file_count", "size_bytes", "hit", "origin_bytes", "stale", "file_name", "lease", "view_path", "hardlink_for_root", "transport", "shared_bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FILE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HIT_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_BYTES_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    VIEW_PATH_FIELD_NUMBER: _ClassVar[int]
    HARDLINK_FOR_ROOT_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    SHARED_BYTES_FIELD_NUMBER: _ClassVar[int]
    version: str
    digest: str
    file_count: int
    size_bytes: int
    hit: bool
    origin_bytes: int
    stale: bool
    file_name: str
    lease: int
    view_path: bytes
    hardlink_for_root: bool
    transport: str
    shared_bytes: int
    def __init__(self, version: _Optional[str] = ..., digest: _Optional[str] = ..., file_count: _Optional[int] = ..., size_bytes: _Optional[int] = ..., hit: bool = ..., origin_bytes: _Optional[int] = ..., stale: bool = ..., file_name: _Optional[str] = ..., lease: _Optional[int] = ..., view_path: _Optional[bytes] = ..., hardlink_for_root: bool = ..., transport: _Optional[str] = ..., shared_bytes: _Optional[int] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: int
    def __init__(self, lease: _Optional[int] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HeldArtifact(_message.Message):
    __slots__ = ("version", "digest", "file_count", "size_bytes", "fetched_at", "used_at", "include", "exclude", "lease_count", "pinned_until")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FILE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FETCHED_AT_FIELD_NUMBER: _ClassVar[int]
    USED_AT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    LEASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    PINNED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    version: str
    digest: str
    file_count: int
    size_bytes: int
    fetched_at: float
    used_at: float
    include: _containers.RepeatedScalarFieldContainer[str]
    exclude: _containers.RepeatedScalarFieldContainer[str]
    lease_count: int
    pinned_until: float
    def __init__(self, version: _Optional[str] = ..., digest: _Optional[str] = ..., file_count: _Optional[int] = ..., size_bytes: _Optional[int] = ..., fetched_at: _Optional[float] = ..., used_at: _Optional[float] = ..., include: _Optional[_Iterable[str]] = ..., exclude: _Optional[_Iterable[str]] = ..., lease_count: _Optional[int] = ..., pinned_until: _Optional[float] = ...) -> None: ...

class InspectRequest(_message.Message):
    __slots__ = ("artifact",)
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    artifact: ArtifactSelection
    def __init__(self, artifact: _Optional[_Union[ArtifactSelection, _Mapping]] = ...) -> None: ...

class InspectEvent(_message.Message):
    __slots__ = ("artifact", "files")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    artifact: HeldArtifact
    files: FileBatch
    def __init__(self, artifact: _Optional[_Union[HeldArtifact, _Mapping]] = ..., files: _Optional[_Union[FileBatch, _Mapping]] = ...) -> None: ...

class FileBatch(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[File]
    def __init__(self, files: _Optional[_Iterable[_Union[File, _Mapping]]] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("path", "digest", "size_bytes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    digest: str
    size_bytes: int
    def __init__(self, path: _Optional[bytes] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("artifact",)
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    artifact: ArtifactSelection
    def __init__(self, artifact: _Optional[_Union[ArtifactSelection, _Mapping]] = ...) -> None: ...

class VerifyEvent(_message.Message):
    __slots__ = ("progress", "result")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    result: VerifyResult
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., result: _Optional[_Union[VerifyResult, _Mapping]] = ...) -> None: ...

class VerifyResult(_message.Message):
    __slots__ = ("blobs_checked", "bytes_checked", "corrupted", "affected", "seconds")
    BLOBS_CHECKED_FIELD_NUMBER: _ClassVar[int]
    BYTES_CHECKED_FIELD_NUMBER: _ClassVar[int]
    CORRUPTED_FIELD_NUMBER: _ClassVar[int]
    AFFECTED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    blobs_checked: int
    bytes_checked: int
    corrupted: _containers.RepeatedScalarFieldContainer[str]
    affected: _containers.RepeatedScalarFieldContainer[str]
    seconds: float
    def __init__(self, blobs_checked: _Optional[int] = ..., bytes_checked: _Optional[int] = ..., corrupted: _Optional[_Iterable[str]] = ..., affected: _Optional[_Iterable[str]] = ..., seconds: _Optional[float] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsReply(_message.Message):
    __slots__ = ("artifact_count", "tree_count", "blob_count", "blob_bytes", "artifact_bytes", "free_bytes", "capacity_bytes", "min_free_bytes", "fetch_count", "hit_count", "origin_bytes", "served_bytes", "download_count", "session_count", "lease_count", "quarantine_count", "started_at", "store_root", "evicted_count", "evicted_bytes", "pin_count", "coming_bytes", "refused_count", "damaged_count", "scrub_began_at", "scrub_ended_at", "scrub_blob_count", "scrub_bytes", "scrub_wrong_count")
    ARTIFACT_COUNT_FIELD_NUMBER: _ClassVar[int]
    TREE_COUNT_FIELD_NUMBER: _ClassVar[int]
    BLOB_COUNT_FIELD_NUMBER: _ClassVar[int]
    BLOB_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MIN_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FETCH_COUNT_FIELD_NUMBER: _ClassVar[int]
    HIT_COUNT_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_BYTES_FIELD_NUMBER: _ClassVar[int]
    SERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    SESSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    LEASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    QUARANTINE_COUNT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    STORE_ROOT_FIELD_NUMBER: _ClassVar[int]
    EVICTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    EVICTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIN_COUNT_FIELD_NUMBER: _ClassVar[int]
    COMING_BYTES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_COUNT_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_COUNT_FIELD_NUMBER: _ClassVar[int]
    SCRUB_BEGAN_AT_FIELD_NUMBER: _ClassVar[int]
    SCRUB_ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    SCRUB_BLOB_COUNT_FIELD_NUMBER: _ClassVar[int]
    SCRUB_BYTES_FIELD_NUMBER: _ClassVar[int]
    SCRUB_WRONG_COUNT_FIELD_NUMBER: _ClassVar[int]
    artifact_count: int
    tree_count: int
    blob_count: int
    blob_bytes: int
    artifact_bytes: int
    free_bytes: int
    capacity_bytes: int
    min_free_bytes: int
    fetch_count: int
    hit_count: int
    origin_bytes: int
    served_bytes: int
    download_count: int
    session_count: int
    lease_count: int
    quarantine_count: int
    started_at: float
    store_root: str
    evicted_count: int
    evicted_bytes: int
    pin_count: int
    coming_bytes: int
    refused_count: int
    damaged_count: int
    scrub_began_at: float
    scrub_ended_at: float
    scrub_blob_count: int
    scrub_bytes: int
    scrub_wrong_count: int
    def __init__(self, artifact_count: _Optional[int] = ..., tree_count: _Optional[int] = ..., blob_count: _Optional[int] = ..., blob_bytes: _Optional[int] = ..., artifact_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., capacity_bytes: _Optional[int] = ..., min_free_bytes: _Optional[int] = ..., fetch_count: _Optional[int] = ..., hit_count: _Optional[int] = ..., origin_bytes: _Optional[int] = ..., served_bytes: _Optional[int] = ..., download_count: _Optional[int] = ..., session_count: _Optional[int] = ..., lease_count: _Optional[int] = ..., quarantine_count: _Optional[int] = ..., started_at: _Optional[float] = ..., store_root: _Optional[str] = ..., evicted_count: _Optional[int] = ..., evicted_bytes: _Optional[int] = ..., pin_count: _Optional[int] = ..., coming_bytes: _Optional[int] = ..., refused_count: _Optional[int] = ..., damaged_count: _Optional[int] = ..., scrub_began_at: _Optional[float] = ..., scrub_ended_at: _Optional[float] = ..., scrub_blob_count: _Optional[int] = ..., scrub_bytes: _Optional[int] = ..., scrub_wrong_count: _Optional[int] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("artifact", "seconds")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    artifact: ArtifactSelection
    seconds: float
    def __init__(self, artifact: _Optional[_Union[ArtifactSelection, _Mapping]] = ..., seconds: _Optional[float] = ...) -> None: ...

class PinReply(_message.Message):
    __slots__ = ("version", "digest", "until", "owner")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    version: str
    digest: str
    until: float
    owner: str
    def __init__(self, version: _Optional[str] = ..., digest: _Optional[str] = ..., until: _Optional[float] = ..., owner: _Optional[str] = ...) -> None: ...

class UnpinRequest(_message.Message):
    __slots__ = ("artifact",)
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    artifact: ArtifactSelection
    def __init__(self, artifact: _Optional[_Union[ArtifactSelection, _Mapping]] = ...) -> None: ...

class UnpinReply(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, versions: _Optional[_Iterable[str]] = ...) -> None: ...

class SweepRequest(_message.Message):
    __slots__ = ("dry_run", "free_bytes")
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    free_bytes: int
    def __init__(self, dry_run: bool = ..., free_bytes: _Optional[int] = ...) -> None: ...

class SweepEvent(_message.Message):
    __slots__ = ("evicted", "result")
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    evicted: Evicted
    result: SweepResult
    def __init__(self, evicted: _Optional[_Union[Evicted, _Mapping]] = ..., result: _Optional[_Union[SweepResult, _Mapping]] = ...) -> None: ...

class Evicted(_message.Message):
    __slots__ = ("digest", "versions", "size_bytes", "freed_bytes", "reason")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    digest: str
    versions: _containers.RepeatedScalarFieldContainer[str]
    size_bytes: int
    freed_bytes: int
    reason: str
    def __init__(self, digest: _Optional[str] = ..., versions: _Optional[_Iterable[str]] = ..., size_bytes: _Optional[int] = ..., freed_bytes: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class SweepResult(_message.Message):
    __slots__ = ("tree_count", "freed_bytes", "wanted_bytes", "kept", "seconds")
    TREE_COUNT_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    WANTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    tree_count: int
    freed_bytes: int
    wanted_bytes: int
    kept: _containers.RepeatedCompositeFieldContainer[Kept]
    seconds: float
    def __init__(self, tree_count: _Optional[int] = ..., freed_bytes: _Optional[int] = ..., wanted_bytes: _Optional[int] = ..., kept: _Optional[_Iterable[_Union[Kept, _Mapping]]] = ..., seconds: _Optional[float] = ...) -> None: ...

class Kept(_message.Message):
    __slots__ = ("reason", "tree_count")
    REASON_FIELD_NUMBER: _ClassVar[int]
    TREE_COUNT_FIELD_NUMBER: _ClassVar[int]
    reason: str
    tree_count: int
    def __init__(self, reason: _Optional[str] = ..., tree_count: _Optional[int] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("artifact",)
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    artifact: ArtifactSelection
    def __init__(self, artifact: _Optional[_Union[ArtifactSelection, _Mapping]] = ...) -> None: ...

class ExplainReply(_message.Message):
    __slots__ = ("artifact", "is_kept", "reasons", "place", "queue_length", "freed_bytes", "refetch_seconds")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    IS_KEPT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    REFETCH_SECONDS_FIELD_NUMBER: _ClassVar[int]
    artifact: HeldArtifact
    is_kept: bool
    reasons: _containers.RepeatedScalarFieldContainer[str]
    place: int
    queue_length: int
    freed_bytes: int
    refetch_seconds: float
    def __init__(self, artifact: _Optional[_Union[HeldArtifact, _Mapping]] = ..., is_kept: bool = ..., reasons: _Optional[_Iterable[str]] = ..., place: _Optional[int] = ..., queue_length: _Optional[int] = ..., freed_bytes: _Optional[int] = ..., refetch_seconds: _Optional[float] = ...) -> None: ...

class AuditRequest(_message.Message):
    __slots__ = ("user", "artifact", "refused_only", "since", "follow")
    USER_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_ONLY_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    user: str
    artifact: str
    refused_only: bool
    since: float
    follow: bool
    def __init__(self, user: _Optional[str] = ..., artifact: _Optional[str] = ..., refused_only: bool = ..., since: _Optional[float] = ..., follow: bool = ...) -> None: ...

class AuditEvent(_message.Message):
    __slots__ = ("lines",)
    LINES_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, lines: _Optional[_Iterable[bytes]] = ...) -> None: ...

class UsageRequest(_message.Message):
    __slots__ = ("everybody",)
    EVERYBODY_FIELD_NUMBER: _ClassVar[int]
    everybody: bool
    def __init__(self, everybody: bool = ...) -> None: ...

class UsageReply(_message.Message):
    __slots__ = ("users",)
    USERS_FIELD_NUMBER: _ClassVar[int]
    users: _containers.RepeatedCompositeFieldContainer[UserUsage]
    def __init__(self, users: _Optional[_Iterable[_Union[UserUsage, _Mapping]]] = ...) -> None: ...

class UserUsage(_message.Message):
    __slots__ = ("uid", "user", "held_bytes", "tree_count", "held_bytes_max")
    UID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    TREE_COUNT_FIELD_NUMBER: _ClassVar[int]
    HELD_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    uid: int
    user: str
    held_bytes: int
    tree_count: int
    held_bytes_max: int
    def __init__(self, uid: _Optional[int] = ..., user: _Optional[str] = ..., held_bytes: _Optional[int] = ..., tree_count: _Optional[int] = ..., held_bytes_max: _Optional[int] = ...) -> None: ...

class CheckupRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckupReply(_message.Message):
    __slots__ = ("findings", "now", "hardlink_for_root")
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    HARDLINK_FOR_ROOT_FIELD_NUMBER: _ClassVar[int]
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    now: float
    hardlink_for_root: bool
    def __init__(self, findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., now: _Optional[float] = ..., hardlink_for_root: bool = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("check", "level", "what", "todo")
    CHECK_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    TODO_FIELD_NUMBER: _ClassVar[int]
    check: str
    level: str
    what: str
    todo: str
    def __init__(self, check: _Optional[str] = ..., level: _Optional[str] = ..., what: _Optional[str] = ..., todo: _Optional[str] = ...) -> None: ...

class OverviewRequest(_message.Message):
    __slots__ = ("since",)
    SINCE_FIELD_NUMBER: _ClassVar[int]
    since: float
    def __init__(self, since: _Optional[float] = ...) -> None: ...

class OverviewReply(_message.Message):
    __slots__ = ("now", "version", "user", "roles", "sees_all", "stats", "saved_bytes", "high_percent", "low_percent", "held", "groups", "group_count", "history", "users", "queue", "queue_length", "downloads", "faults")
    NOW_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    SEES_ALL_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    SAVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    HIGH_PERCENT_FIELD_NUMBER: _ClassVar[int]
    LOW_PERCENT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    GROUP_COUNT_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    USERS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DOWNLOADS_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    now: float
    version: str
    user: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    sees_all: bool
    stats: StatsReply
    saved_bytes: int
    high_percent: float
    low_percent: float
    held: HeldGroup
    groups: _containers.RepeatedCompositeFieldContainer[HeldGroup]
    group_count: int
    history: _containers.RepeatedCompositeFieldContainer[Sample]
    users: _containers.RepeatedCompositeFieldContainer[UserUse]
    queue: _containers.RepeatedCompositeFieldContainer[QueuedTree]
    queue_length: int
    downloads: _containers.RepeatedCompositeFieldContainer[Download]
    faults: _containers.RepeatedCompositeFieldContainer[Fault]
    def __init__(self, now: _Optional[float] = ..., version: _Optional[str] = ..., user: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ..., sees_all: bool = ..., stats: _Optional[_Union[StatsReply, _Mapping]] = ..., saved_bytes: _Optional[int] = ..., high_percent: _Optional[float] = ..., low_percent: _Optional[float] = ..., held: _Optional[_Union[HeldGroup, _Mapping]] = ..., groups: _Optional[_Iterable[_Union[HeldGroup, _Mapping]]] = ..., group_count: _Optional[int] = ..., history: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ..., users: _Optional[_Iterable[_Union[UserUse, _Mapping]]] = ..., queue: _Optional[_Iterable[_Union[QueuedTree, _Mapping]]] = ..., queue_length: _Optional[int] = ..., downloads: _Optional[_Iterable[_Union[Download, _Mapping]]] = ..., faults: _Optional[_Iterable[_Union[Fault, _Mapping]]] = ...) -> None: ...

class HeldGroup(_message.Message):
    __slots__ = ("name", "artifact_count", "share_bytes", "used_at", "parts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_COUNT_FIELD_NUMBER: _ClassVar[int]
    SHARE_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_AT_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    artifact_count: int
    share_bytes: int
    used_at: float
    parts: _containers.RepeatedCompositeFieldContainer[HeldPart]
    def __init__(self, name: _Optional[str] = ..., artifact_count: _Optional[int] = ..., share_bytes: _Optional[int] = ..., used_at: _Optional[float] = ..., parts: _Optional[_Iterable[_Union[HeldPart, _Mapping]]] = ...) -> None: ...

class HeldPart(_message.Message):
    __slots__ = ("version", "share_bytes", "size_bytes", "file_count", "used_at", "include", "exclude", "lease_count", "pinned_until", "users")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FILE_COUNT_FIELD_NUMBER: _ClassVar[int]
    USED_AT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    LEASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    PINNED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    USERS_FIELD_NUMBER: _ClassVar[int]
    version: str
    share_bytes: int
    size_bytes: int
    file_count: int
    used_at: float
    include: _containers.RepeatedScalarFieldContainer[str]
    exclude: _containers.RepeatedScalarFieldContainer[str]
    lease_count: int
    pinned_until: float
    users: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., share_bytes: _Optional[int] = ..., size_bytes: _Optional[int] = ..., file_count: _Optional[int] = ..., used_at: _Optional[float] = ..., include: _Optional[_Iterable[str]] = ..., exclude: _Optional[_Iterable[str]] = ..., lease_count: _Optional[int] = ..., pinned_until: _Optional[float] = ..., users: _Optional[_Iterable[str]] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("at", "fetch_count", "hit_count", "served_bytes", "saved_bytes", "blob_bytes")
    AT_FIELD_NUMBER: _ClassVar[int]
    FETCH_COUNT_FIELD_NUMBER: _ClassVar[int]
    HIT_COUNT_FIELD_NUMBER: _ClassVar[int]
    SERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SAVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOB_BYTES_FIELD_NUMBER: _ClassVar[int]
    at: float
    fetch_count: int
    hit_count: int
    served_bytes: int
    saved_bytes: int
    blob_bytes: int
    def __init__(self, at: _Optional[float] = ..., fetch_count: _Optional[int] = ..., hit_count: _Optional[int] = ..., served_bytes: _Optional[int] = ..., saved_bytes: _Optional[int] = ..., blob_bytes: _Optional[int] = ...) -> None: ...

class UserUse(_message.Message):
    __slots__ = ("usage", "session_count", "lease_count", "download_count")
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SESSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    LEASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    usage: UserUsage
    session_count: int
    lease_count: int
    download_count: int
    def __init__(self, usage: _Optional[_Union[UserUsage, _Mapping]] = ..., session_count: _Optional[int] = ..., lease_count: _Optional[int] = ..., download_count: _Optional[int] = ...) -> None: ...

class QueuedTree(_message.Message):
    __slots__ = ("digest", "versions", "share_bytes", "reason", "kept")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SHARE_BYTES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    digest: str
    versions: _containers.RepeatedScalarFieldContainer[str]
    share_bytes: int
    reason: str
    kept: str
    def __init__(self, digest: _Optional[str] = ..., versions: _Optional[_Iterable[str]] = ..., share_bytes: _Optional[int] = ..., reason: _Optional[str] = ..., kept: _Optional[str] = ...) -> None: ...

class Download(_message.Message):
    __slots__ = ("version", "progress", "waiting_count", "users", "include", "exclude")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    WAITING_COUNT_FIELD_NUMBER: _ClassVar[int]
    USERS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    version: str
    progress: Progress
    waiting_count: int
    users: _containers.RepeatedScalarFieldContainer[str]
    include: _containers.RepeatedScalarFieldContainer[str]
    exclude: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., waiting_count: _Optional[int] = ..., users: _Optional[_Iterable[str]] = ..., include: _Optional[_Iterable[str]] = ..., exclude: _Optional[_Iterable[str]] = ...) -> None: ...

class Fault(_message.Message):
    __slots__ = ("kind", "is_grave", "words")
    KIND_FIELD_NUMBER: _ClassVar[int]
    IS_GRAVE_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    is_grave: bool
    words: str
    def __init__(self, kind: _Optional[str] = ..., is_grave: bool = ..., words: _Optional[str] = ...) -> None: ...

class PageRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PageReply(_message.Message):
    __slots__ = ("url", "seconds")
    URL_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    url: str
    seconds: float
    def __init__(self, url: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class HandoffRequest(_message.Message):
    __slots__ = ("hello", "manifest", "link", "blobs", "present", "probe")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    manifest: ManifestRequest
    link: LinkRequest
    blobs: BlobsRequest
    present: Present
    probe: ProbeRequest
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., manifest: _Optional[_Union[ManifestRequest, _Mapping]] = ..., link: _Optional[_Union[LinkRequest, _Mapping]] = ..., blobs: _Optional[_Union[BlobsRequest, _Mapping]] = ..., present: _Optional[_Union[Present, _Mapping]] = ..., probe: _Optional[_Union[ProbeRequest, _Mapping]] = ...) -> None: ...

class HandoffReply(_message.Message):
    __slots__ = ("welcome", "manifest", "link", "blobs", "failure", "presented", "probe")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    PRESENTED_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    manifest: ManifestReply
    link: LinkReply
    blobs: BlobsReply
    failure: Failure
    presented: Presented
    probe: ProbeReply
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., manifest: _Optional[_Union[ManifestReply, _Mapping]] = ..., link: _Optional[_Union[LinkReply, _Mapping]] = ..., blobs: _Optional[_Union[BlobsReply, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., presented: _Optional[_Union[Presented, _Mapping]] = ..., probe: _Optional[_Union[ProbeReply, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("token", "proves_calls")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    PROVES_CALLS_FIELD_NUMBER: _ClassVar[int]
    token: str
    proves_calls: bool
    def __init__(self, token: _Optional[str] = ..., proves_calls: bool = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("token", "version", "credentials_for", "wants_proofs")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CREDENTIALS_FOR_FIELD_NUMBER: _ClassVar[int]
    WANTS_PROOFS_FIELD_NUMBER: _ClassVar[int]
    token: str
    version: str
    credentials_for: str
    wants_proofs: bool
    def __init__(self, token: _Optional[str] = ..., version: _Optional[str] = ..., credentials_for: _Optional[str] = ..., wants_proofs: bool = ...) -> None: ...

class Present(_message.Message):
    __slots__ = ("headers",)
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    headers: _containers.ScalarMap[str, str]
    def __init__(self, headers: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Presented(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ManifestRequest(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: int
    def __init__(self, lease: _Optional[int] = ...) -> None: ...

class ManifestReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LinkRequest(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: int
    def __init__(self, lease: _Optional[int] = ...) -> None: ...

class LinkReply(_message.Message):
    __slots__ = ("file_count",)
    FILE_COUNT_FIELD_NUMBER: _ClassVar[int]
    file_count: int
    def __init__(self, file_count: _Optional[int] = ...) -> None: ...

class BlobsRequest(_message.Message):
    __slots__ = ("lease", "first", "limit")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    lease: int
    first: int
    limit: int
    def __init__(self, lease: _Optional[int] = ..., first: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class BlobsReply(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class ProbeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ProbeReply(_message.Message):
    __slots__ = ("linked_as", "no_link", "no_view", "views_path", "views_device", "views_inode", "filesystem", "filesystem_id")
    LINKED_AS_FIELD_NUMBER: _ClassVar[int]
    NO_LINK_FIELD_NUMBER: _ClassVar[int]
    NO_VIEW_FIELD_NUMBER: _ClassVar[int]
    VIEWS_PATH_FIELD_NUMBER: _ClassVar[int]
    VIEWS_DEVICE_FIELD_NUMBER: _ClassVar[int]
    VIEWS_INODE_FIELD_NUMBER: _ClassVar[int]
    FILESYSTEM_FIELD_NUMBER: _ClassVar[int]
    FILESYSTEM_ID_FIELD_NUMBER: _ClassVar[int]
    linked_as: str
    no_link: str
    no_view: str
    views_path: bytes
    views_device: int
    views_inode: int
    filesystem: str
    filesystem_id: str
    def __init__(self, linked_as: _Optional[str] = ..., no_link: _Optional[str] = ..., no_view: _Optional[str] = ..., views_path: _Optional[bytes] = ..., views_device: _Optional[int] = ..., views_inode: _Optional[int] = ..., filesystem: _Optional[str] = ..., filesystem_id: _Optional[str] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("error", "message")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    error: str
    message: str
    def __init__(self, error: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...
