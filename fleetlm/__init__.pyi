# The public names with their types; `__init__.py` imports each when it is used first.

from fleetlm.actor import Actor as Actor
from fleetlm.actor_ref import ActorRef as ActorRef
from fleetlm.call import Call as Call
from fleetlm.core.answers import Answer as Answer
from fleetlm.core.answers import Outcome as Outcome
from fleetlm.core.registry import Claim as Claim
from fleetlm.core.topology import PeerInfo as PeerInfo
from fleetlm.discovery import (
    Discovery as Discovery,
)
from fleetlm.discovery import (
    DnsDiscovery as DnsDiscovery,
)
from fleetlm.discovery import (
    StaticDiscovery as StaticDiscovery,
)
from fleetlm.errors import (
    AlreadyRegistered as AlreadyRegistered,
)
from fleetlm.errors import (
    CallTimeout as CallTimeout,
)
from fleetlm.errors import (
    Draining as Draining,
)
from fleetlm.errors import (
    Expired as Expired,
)
from fleetlm.errors import (
    FleetError as FleetError,
)
from fleetlm.errors import (
    InitFailed as InitFailed,
)
from fleetlm.errors import (
    InvalidName as InvalidName,
)
from fleetlm.errors import (
    MessageTooLarge as MessageTooLarge,
)
from fleetlm.errors import (
    NoConnection as NoConnection,
)
from fleetlm.errors import (
    NodeLost as NodeLost,
)
from fleetlm.errors import (
    NodeStopped as NodeStopped,
)
from fleetlm.errors import (
    NoHandler as NoHandler,
)
from fleetlm.errors import (
    NoMember as NoMember,
)
from fleetlm.errors import (
    NoProcess as NoProcess,
)
from fleetlm.errors import (
    NotDelivered as NotDelivered,
)
from fleetlm.errors import (
    NotSerializable as NotSerializable,
)
from fleetlm.errors import (
    ProcessDown as ProcessDown,
)
from fleetlm.errors import (
    ProcessExit as ProcessExit,
)
from fleetlm.errors import (
    RemoteError as RemoteError,
)
from fleetlm.errors import (
    SettingsError as SettingsError,
)
from fleetlm.errors import (
    StartFailed as StartFailed,
)
from fleetlm.errors import (
    TooManyMemberships as TooManyMemberships,
)
from fleetlm.errors import (
    TooManyNames as TooManyNames,
)
from fleetlm.errors import (
    Undecodable as Undecodable,
)
from fleetlm.errors import (
    Unknown as Unknown,
)
from fleetlm.errors import (
    WorkerDied as WorkerDied,
)
from fleetlm.errors import (
    WouldBlock as WouldBlock,
)
from fleetlm.handlers import handler as handler
from fleetlm.ids import Pid as Pid
from fleetlm.ids import Ref as Ref
from fleetlm.info import NodeInfo as NodeInfo
from fleetlm.messages import (
    Crash as Crash,
)
from fleetlm.messages import (
    Down as Down,
)
from fleetlm.messages import (
    Exit as Exit,
)
from fleetlm.messages import (
    Joined as Joined,
)
from fleetlm.messages import (
    Left as Left,
)
from fleetlm.messages import (
    NameLost as NameLost,
)
from fleetlm.messages import (
    NodeDown as NodeDown,
)
from fleetlm.messages import (
    NodeUp as NodeUp,
)
from fleetlm.messages import (
    Registered as Registered,
)
from fleetlm.messages import (
    Unregistered as Unregistered,
)
from fleetlm.messages import (
    message as message,
)
from fleetlm.names import Address as Address
from fleetlm.names import NodeName as NodeName
from fleetlm.node import Node as Node
from fleetlm.node_thread import node_in_thread as node_in_thread
from fleetlm.process import Process as Process
from fleetlm.process import ProcessInfo as ProcessInfo
from fleetlm.settings import Settings as Settings
from fleetlm.supervisor import Child as Child
from fleetlm.supervisor import Supervisor as Supervisor
from fleetlm.sync import SyncNode as SyncNode

__version__: str
