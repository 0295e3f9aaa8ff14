# The public names, for type checkers. `__init__.py` imports each at its first use.

from fleetlm.actor import Actor as Actor
from fleetlm.actors.handlers import handler as handler
from fleetlm.actors.ref import ActorRef as ActorRef
from fleetlm.actors.refs import ActorRefs as ActorRefs
from fleetlm.call import Call as Call
from fleetlm.core.dns_answers import Answer as Answer, Outcome as Outcome
from fleetlm.core.member_loads import MemberInfo as MemberInfo
from fleetlm.core.name_table import Claim as Claim
from fleetlm.core.quorum import Quorum as Quorum
from fleetlm.core.topology import PeerInfo as PeerInfo
from fleetlm.directory.group_ref import GroupRef as GroupRef
from fleetlm.directory.members import Member as Member
from fleetlm.directory.tables import SharedTable as SharedTable
from fleetlm.discovery.dns import DnsDiscovery as DnsDiscovery, StaticDiscovery as StaticDiscovery
from fleetlm.discovery.interface import Discovery as Discovery
from fleetlm.entities.entity_ref import EntityRef as EntityRef, EntityRefs as EntityRefs
from fleetlm.entities.info import (
    HostedInfo as HostedInfo,
    KindInfo as KindInfo,
    QuorumInfo as QuorumInfo,
    StoreInfo as StoreInfo,
)
from fleetlm.entity import Entity as Entity
from fleetlm.errors import (
    AlreadyRegistered as AlreadyRegistered,
    CallTimeout as CallTimeout,
    Draining as Draining,
    Expired as Expired,
    Fenced as Fenced,
    FleetError as FleetError,
    InitFailed as InitFailed,
    InvalidName as InvalidName,
    MessageTooLarge as MessageTooLarge,
    NoConnection as NoConnection,
    NodeLost as NodeLost,
    NodeStopped as NodeStopped,
    NoFactory as NoFactory,
    NoHandler as NoHandler,
    NoMember as NoMember,
    NoProcess as NoProcess,
    NotAllowed as NotAllowed,
    NotDelivered as NotDelivered,
    NotLoaded as NotLoaded,
    NotOwner as NotOwner,
    NotSerializable as NotSerializable,
    NotStored as NotStored,
    OutcomeUnknown as OutcomeUnknown,
    ProcessDown as ProcessDown,
    ProcessExit as ProcessExit,
    RemoteError as RemoteError,
    SettingsError as SettingsError,
    StartFailed as StartFailed,
    StoreError as StoreError,
    StoreFailed as StoreFailed,
    StreamIdle as StreamIdle,
    TooManyMemberships as TooManyMemberships,
    TooManyNames as TooManyNames,
    TooManyRows as TooManyRows,
    Undecodable as Undecodable,
    VersionConflict as VersionConflict,
    WorkerDied as WorkerDied,
    WorkerNotStarted as WorkerNotStarted,
    WouldBlock as WouldBlock,
)
from fleetlm.ids import Pid as Pid, Ref as Ref
from fleetlm.messages import (
    Crash as Crash,
    CronSlot as CronSlot,
    Down as Down,
    Exit as Exit,
    Joined as Joined,
    Left as Left,
    NameLost as NameLost,
    NodeDown as NodeDown,
    NodeDraining as NodeDraining,
    NodeUndrained as NodeUndrained,
    NodeUp as NodeUp,
    Registered as Registered,
    RowDropped as RowDropped,
    RowPut as RowPut,
    Unregistered as Unregistered,
    message as message,
    register_type as register_type,
)
from fleetlm.messaging.carrying import carried as carried, carry as carry
from fleetlm.messaging.retries import retry as retry
from fleetlm.names import Address as Address, NodeName as NodeName
from fleetlm.node import Node as Node
from fleetlm.node_thread import node_in_thread as node_in_thread
from fleetlm.process import Process as Process
from fleetlm.process_pool import ProcessPool as ProcessPool
from fleetlm.processes.info import ChildInfo as ChildInfo, ProcessInfo as ProcessInfo
from fleetlm.processes.owned import Timer as Timer
from fleetlm.program import run as run
from fleetlm.runtime.info import DrainReport as DrainReport, NodeInfo as NodeInfo
from fleetlm.runtime.readiness import Readiness as Readiness
from fleetlm.settings import Settings as Settings
from fleetlm.stores.interface import Fence as Fence, Store as Store, Stored as Stored
from fleetlm.stores.memory import MemoryStore as MemoryStore
from fleetlm.stores.postgres import PostgresStore as PostgresStore
from fleetlm.stores.sqlite import SQLiteStore as SQLiteStore
from fleetlm.stream import Stream as Stream
from fleetlm.supervisor import Child as Child, Supervisor as Supervisor
from fleetlm.sync import SyncNode as SyncNode
from fleetlm.telemetry import (
    Attachment as Attachment,
    CallEnded as CallEnded,
    CallStarted as CallStarted,
    ChildRestarted as ChildRestarted,
    HandlerEnded as HandlerEnded,
    MessageDropped as MessageDropped,
    SessionDown as SessionDown,
    SessionUp as SessionUp,
    SupervisorGaveUp as SupervisorGaveUp,
    Telemetry as Telemetry,
    WindowFull as WindowFull,
    WindowOpened as WindowOpened,
)
from fleetlm.threads.arrivals import SyncStream as SyncStream

__version__: str
