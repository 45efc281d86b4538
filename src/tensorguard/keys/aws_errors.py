"""What AWS says, in our words. Nothing of a library's text reaches a caller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from botocore import exceptions as boto

from tensorguard.errors import TensorGuardError
from tensorguard.keys.provider import (
    KeyCustodyDenied,
    KeyCustodyDown,
    KeyCustodyThrottled,
    KeyCustodyTimeout,
    KeyDisabled,
    KeyProviderUnusable,
    KeyRetired,
    KeyUnusable,
    WrongContext,
)

CODES: Final[Mapping[str, type[TensorGuardError]]] = MappingProxyType(
    {
        "DisabledException": KeyDisabled,
        "KMSInvalidStateException": KeyRetired,
        "InvalidCiphertextException": WrongContext,
        "IncorrectKeyException": WrongContext,
        "NotFoundException": KeyUnusable,
        "InvalidKeyUsageException": KeyUnusable,
        "AccessDenied": KeyCustodyDenied,
        "AccessDeniedException": KeyCustodyDenied,
        "ExpiredTokenException": KeyCustodyDenied,
        "IncompleteSignature": KeyCustodyDenied,
        "InvalidClientTokenId": KeyCustodyDenied,
        "InvalidSignatureException": KeyCustodyDenied,
        "MissingAuthenticationToken": KeyCustodyDenied,
        "NotAuthorizedException": KeyCustodyDenied,
        "UnrecognizedClientException": KeyCustodyDenied,
        "LimitExceededException": KeyCustodyThrottled,
        "RequestLimitExceeded": KeyCustodyThrottled,
        "Throttling": KeyCustodyThrottled,
        "ThrottlingException": KeyCustodyThrottled,
        "TooManyRequestsException": KeyCustodyThrottled,
        "DependencyTimeoutException": KeyCustodyTimeout,
        "RequestTimeout": KeyCustodyTimeout,
    }
)
NO_CREDENTIALS: Final = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
)
TIMED_OUT: Final = (boto.ConnectTimeoutError, boto.ReadTimeoutError)
WRONG_SETTINGS: Final = (
    boto.ProfileNotFound,
    boto.InvalidRegionError,
    boto.NoRegionError,
    boto.InvalidConfigError,
    boto.ConfigParseError,
)


def code_of(error: boto.ClientError) -> str:
    """Return the error code of AWS."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn every error of boto3 into a typed one about `what`."""
    try:
        yield
    except boto.ClientError as error:
        code = code_of(error)
        kind = CODES.get(code, KeyCustodyDown)
        raise kind(f"AWS KMS refused {what}: {code[:64]}") from error
    except TIMED_OUT as error:
        raise KeyCustodyTimeout(f"AWS KMS did not answer in time: {what}") from error
    except NO_CREDENTIALS as error:
        raise KeyCustodyDenied("there are no credentials for AWS KMS") from error
    except WRONG_SETTINGS as error:
        raise KeyProviderUnusable("the region or profile of AWS is not known") from error
    except boto.BotoCoreError as error:
        raise KeyCustodyDown(f"AWS KMS cannot be reached: {what}") from error
