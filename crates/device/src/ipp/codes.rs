//! Numbers of the protocol: operations, status codes, tags.

macro_rules! codes {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $code:literal $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $name {
            $(#[doc = concat!("`", $word, "`")] $variant,)*
        }

        impl $name {
            /// All that this build knows, in ascending order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its number in messages.
            pub fn code(self) -> u16 {
                match self { $(Self::$variant => $code,)* }
            }

            /// What has this number.
            pub fn of(code: u16) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }

            /// Its name in the registry.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

codes! {
    /// What is asked of a printer (RFC 8011, PWG 5100.11, RFC 3995, 3998).
    Operation {
        PrintJob = 0x0002 "Print-Job",
        PrintUri = 0x0003 "Print-URI",
        ValidateJob = 0x0004 "Validate-Job",
        CreateJob = 0x0005 "Create-Job",
        SendDocument = 0x0006 "Send-Document",
        SendUri = 0x0007 "Send-URI",
        CancelJob = 0x0008 "Cancel-Job",
        GetJobAttributes = 0x0009 "Get-Job-Attributes",
        GetJobs = 0x000a "Get-Jobs",
        GetPrinterAttributes = 0x000b "Get-Printer-Attributes",
        HoldJob = 0x000c "Hold-Job",
        ReleaseJob = 0x000d "Release-Job",
        RestartJob = 0x000e "Restart-Job",
        PausePrinter = 0x0010 "Pause-Printer",
        ResumePrinter = 0x0011 "Resume-Printer",
        PurgeJobs = 0x0012 "Purge-Jobs",
        SetPrinterAttributes = 0x0013 "Set-Printer-Attributes",
        SetJobAttributes = 0x0014 "Set-Job-Attributes",
        GetPrinterSupportedValues = 0x0015 "Get-Printer-Supported-Values",
        CreatePrinterSubscriptions = 0x0016 "Create-Printer-Subscriptions",
        CreateJobSubscriptions = 0x0017 "Create-Job-Subscriptions",
        GetSubscriptionAttributes = 0x0018 "Get-Subscription-Attributes",
        GetSubscriptions = 0x0019 "Get-Subscriptions",
        RenewSubscription = 0x001a "Renew-Subscription",
        CancelSubscription = 0x001b "Cancel-Subscription",
        GetNotifications = 0x001c "Get-Notifications",
        EnablePrinter = 0x0022 "Enable-Printer",
        DisablePrinter = 0x0023 "Disable-Printer",
        PausePrinterAfterCurrentJob = 0x0024 "Pause-Printer-After-Current-Job",
        HoldNewJobs = 0x0025 "Hold-New-Jobs",
        ReleaseHeldNewJobs = 0x0026 "Release-Held-New-Jobs",
        RestartPrinter = 0x0029 "Restart-Printer",
        ShutdownPrinter = 0x002a "Shutdown-Printer",
        StartupPrinter = 0x002b "Startup-Printer",
        ReprocessJob = 0x002c "Reprocess-Job",
        CancelCurrentJob = 0x002d "Cancel-Current-Job",
        SuspendCurrentJob = 0x002e "Suspend-Current-Job",
        ResumeJob = 0x002f "Resume-Job",
        PromoteJob = 0x0030 "Promote-Job",
        ScheduleJobAfter = 0x0031 "Schedule-Job-After",
        CancelDocument = 0x0033 "Cancel-Document",
        GetDocumentAttributes = 0x0034 "Get-Document-Attributes",
        GetDocuments = 0x0035 "Get-Documents",
        SetDocumentAttributes = 0x0037 "Set-Document-Attributes",
        CancelJobs = 0x0038 "Cancel-Jobs",
        CancelMyJobs = 0x0039 "Cancel-My-Jobs",
        ResubmitJob = 0x003a "Resubmit-Job",
        CloseJob = 0x003b "Close-Job",
        IdentifyPrinter = 0x003c "Identify-Printer",
    }
}

codes! {
    /// How a printer answers (RFC 8011 appendix B).
    Status {
        Ok = 0x0000 "successful-ok",
        OkIgnored = 0x0001 "successful-ok-ignored-or-substituted-attributes",
        OkConflicting = 0x0002 "successful-ok-conflicting-attributes",
        BadRequest = 0x0400 "client-error-bad-request",
        Forbidden = 0x0401 "client-error-forbidden",
        NotAuthenticated = 0x0402 "client-error-not-authenticated",
        NotAuthorized = 0x0403 "client-error-not-authorized",
        NotPossible = 0x0404 "client-error-not-possible",
        Timeout = 0x0405 "client-error-timeout",
        NotFound = 0x0406 "client-error-not-found",
        Gone = 0x0407 "client-error-gone",
        RequestEntityTooLarge = 0x0408 "client-error-request-entity-too-large",
        RequestValueTooLong = 0x0409 "client-error-request-value-too-long",
        DocumentFormatNotSupported = 0x040a "client-error-document-format-not-supported",
        AttributesNotSupported = 0x040b "client-error-attributes-or-values-not-supported",
        UriSchemeNotSupported = 0x040c "client-error-uri-scheme-not-supported",
        CharsetNotSupported = 0x040d "client-error-charset-not-supported",
        ConflictingAttributes = 0x040e "client-error-conflicting-attributes",
        CompressionNotSupported = 0x040f "client-error-compression-not-supported",
        CompressionError = 0x0410 "client-error-compression-error",
        DocumentFormatError = 0x0411 "client-error-document-format-error",
        DocumentAccessError = 0x0412 "client-error-document-access-error",
        AttributesNotSettable = 0x0413 "client-error-attributes-not-settable",
        TooManySubscriptions = 0x0415 "client-error-too-many-subscriptions",
        DocumentPasswordError = 0x0418 "client-error-document-password-error",
        AccountLimitReached = 0x041c "client-error-account-limit-reached",
        InternalError = 0x0500 "server-error-internal-error",
        OperationNotSupported = 0x0501 "server-error-operation-not-supported",
        ServiceUnavailable = 0x0502 "server-error-service-unavailable",
        VersionNotSupported = 0x0503 "server-error-version-not-supported",
        DeviceError = 0x0504 "server-error-device-error",
        TemporaryError = 0x0505 "server-error-temporary-error",
        NotAcceptingJobs = 0x0506 "server-error-not-accepting-jobs",
        Busy = 0x0507 "server-error-busy",
        JobCanceled = 0x0508 "server-error-job-canceled",
        MultipleDocumentJobsNotSupported = 0x0509 "server-error-multiple-document-jobs-not-supported",
        PrinterIsDeactivated = 0x050a "server-error-printer-is-deactivated",
        TooManyJobs = 0x050b "server-error-too-many-jobs",
        TooManyDocuments = 0x050c "server-error-too-many-documents",
    }
}

impl Status {
    /// True for the successful ones.
    pub fn is_success(self) -> bool {
        self.code() < 0x0100
    }
}

/// Tags that begin a group of attributes.
pub mod group {
    /// Of the operation itself; always the first group.
    pub const OPERATION: u8 = 0x01;
    /// Of a job.
    pub const JOB: u8 = 0x02;
    /// No group: here the attributes end and the document begins.
    pub const END: u8 = 0x03;
    /// Of a printer.
    pub const PRINTER: u8 = 0x04;
    /// What was asked for and is not supported.
    pub const UNSUPPORTED: u8 = 0x05;
    /// Of a subscription.
    pub const SUBSCRIPTION: u8 = 0x06;
    /// Of an event.
    pub const EVENT: u8 = 0x07;
    /// Of a document.
    pub const DOCUMENT: u8 = 0x09;
}

/// Tags of values.
pub mod tag {
    #![allow(missing_docs, reason = "the names of RFC 8010 section 3.5.2 say it all")]
    pub const UNSUPPORTED: u8 = 0x10;
    pub const UNKNOWN: u8 = 0x12;
    pub const NO_VALUE: u8 = 0x13;
    pub const NOT_SETTABLE: u8 = 0x15;
    pub const DELETE: u8 = 0x16;
    pub const INTEGER: u8 = 0x21;
    pub const BOOLEAN: u8 = 0x22;
    pub const ENUM: u8 = 0x23;
    pub const OCTET_STRING: u8 = 0x30;
    pub const DATE_TIME: u8 = 0x31;
    pub const RESOLUTION: u8 = 0x32;
    pub const RANGE: u8 = 0x33;
    pub const BEGIN_COLLECTION: u8 = 0x34;
    pub const TEXT_LANGUAGE: u8 = 0x35;
    pub const NAME_LANGUAGE: u8 = 0x36;
    pub const END_COLLECTION: u8 = 0x37;
    pub const TEXT: u8 = 0x41;
    pub const NAME: u8 = 0x42;
    pub const KEYWORD: u8 = 0x44;
    pub const URI: u8 = 0x45;
    pub const URI_SCHEME: u8 = 0x46;
    pub const CHARSET: u8 = 0x47;
    pub const NATURAL_LANGUAGE: u8 = 0x48;
    pub const MIME_TYPE: u8 = 0x49;
    pub const MEMBER_NAME: u8 = 0x4a;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_found_again() {
        for (before, after) in Operation::ALL.iter().zip(&Operation::ALL[1..]) {
            assert!(before.code() < after.code(), "{before} {after}");
        }
        for (before, after) in Status::ALL.iter().zip(&Status::ALL[1..]) {
            assert!(before.code() < after.code(), "{before} {after}");
        }
        assert!(Operation::ALL.iter().all(|o| Operation::of(o.code()) == Some(*o)));
        assert_eq!(Status::of(0x0507), Some(Status::Busy));
        assert_eq!(Operation::of(0x4001), None);
    }
}
